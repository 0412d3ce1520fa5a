// Checks any bytes as values of each VR.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "../../../medimg/_native/src/header_values.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // a copy of exactly this size, so that a byte too many is found
  const std::string value(data, data + size);
  for (const char* vr : {"UI", "IS", "DT", "TM", "DS"}) {
    medimg::is_regular_value(vr, value);
  }
  double point[3];
  if (medimg::read_point(value, point)) {
    // as the C library rounds them
    const char* from = value.c_str();
    for (const double number : point) {
      char* end = nullptr;
      if (std::strtod(from, &end) != number) {
        std::abort();
      }
      from = end;
      while (*from == ' ' || *from == '\\') {
        ++from;
      }
    }
  }
  return 0;
}
