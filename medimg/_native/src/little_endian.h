// Reads numbers from bytes at any address.
#pragma once

#include <cstdint>

namespace medimg {

inline std::uint16_t load16(const std::uint8_t* from) {
  return static_cast<std::uint16_t>(from[0] | from[1] << 8);
}

inline std::uint32_t load32(const std::uint8_t* from) {
  return static_cast<std::uint32_t>(load16(from)) | static_cast<std::uint32_t>(load16(from + 2)) << 16;
}

}  // namespace medimg
