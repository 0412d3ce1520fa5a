// The walker of headers in memory; see header_walk.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "api.h"

namespace medimg {

// Places in the answer of a walk, before the runs of wanted elements.
enum Answer : std::size_t {
  kPixelTag = 0,
  kPixelAt,
  kPixelValue,
  kPixelLength,
  kPixelVr,
  kUidValue,
  kUidSize,
  kSyntaxValue,
  kSyntaxSize,
  kRuns,
  kFixedSize,
};

// Numbers of an answer that holds the runs of any usual header.
constexpr std::size_t kAnswerCapacity = 512;

}  // namespace medimg

// Walks the start of a file. The answer has `capacity` numbers: tag, offset, offset of the value, length and VR
// of the pixel data; offset and size of the SOP Instance UID and of the Transfer Syntax UID, with padding; the
// number of runs of wanted elements, and offset and end of each. Returns a Status; -1 if memory is short.
MEDIMG_API std::int32_t medimg_walker_run(const void* walker, const std::uint8_t* head, std::uint64_t size,
                                          std::uint64_t* answer, std::uint64_t capacity);
