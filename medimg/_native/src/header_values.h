// Checks values of headers as written; what it refuses is left to the parser, which decides.
#pragma once

#include <string_view>

namespace medimg {

// Whether a value without zero padding is certainly valid for its VR, one of UI, IS, DT and TM.
// The grammars are those of medimg/io/dicom/scanning/series_table.py; empty values are valid.
bool is_regular_value(std::string_view vr, std::string_view value);

// Reads three numbers with backslashes between them, correctly rounded. False, though they may be valid, if they
// have more digits than this can round exactly.
bool read_point(std::string_view value, double* point);

}  // namespace medimg
