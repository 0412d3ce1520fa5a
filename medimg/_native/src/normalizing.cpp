// Normalizes stored intensities: to float32, times one number plus another, each step rounded.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>

#include "api.h"
#include "threads.h"
#include "vectors.h"

namespace medimg {

namespace {

enum Type : std::int32_t { kUint8 = 0, kFloat16 = 1, kFloat32 = 2 };

inline float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// All bits if a condition holds: a choice without a branch, several of which a processor makes at once.
inline std::uint32_t all_if(bool condition) { return 0u - static_cast<std::uint32_t>(condition); }

// IEEE 754 binary16, without instructions that not every processor has.
inline float to_float(std::uint16_t half) {
  constexpr std::uint32_t kBias = 112u << 23;
  const std::uint32_t magnitude = half & 0x7FFFu;
  const std::uint32_t normal = (magnitude << 13) + kBias + (all_if(magnitude >= 0x7C00u) & kBias);
  // below the least normal number, in steps of 2^-24, which are those of float32 from 0.5 on
  const std::uint32_t subnormal = as_bits(as_float(0x3F000000u + magnitude) - 0.5f);
  const std::uint32_t chosen = all_if(magnitude < 0x0400u);
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  return as_float((subnormal & chosen) | (normal & ~chosen) | sign);
}

inline float to_float(std::uint8_t value) { return static_cast<float>(value) / 255.0f; }

inline float to_float(float value) { return value; }

template <class T>
MEDIMG_VECTORS void decode_plane(const T* from, std::int64_t count, float* to) {
  for (std::int64_t n = 0; n < count; ++n) {
    to[n] = to_float(from[n]);
  }
}

MEDIMG_VECTORS void scale_plane(const float* from, float factor, float offset, std::int64_t count, float* to) {
  for (std::int64_t n = 0; n < count; ++n) {
    to[n] = from[n] * factor + offset;
  }
}

// Pixels that are decoded at once, so that they stay in a core's first cache.
constexpr std::int64_t kBlock = 2048;

struct Normalizing {
  std::int64_t planes;  // of a stored image: 1, or as many as channels
  std::int64_t channels;
  std::int64_t pixels;
  const float* factors;
  const float* offsets;
};

template <class T>
void normalize(const Normalizing& how, const T* image, float* out) {
  float block[kBlock];
  for (std::int64_t plane = 0; plane < how.planes; ++plane) {
    // one plane is that of all channels
    const std::int64_t last = how.planes == 1 ? how.channels : plane + 1;
    for (std::int64_t start = 0; start < how.pixels; start += kBlock) {
      const std::int64_t count = std::min(kBlock, how.pixels - start);
      decode_plane(image + plane * how.pixels + start, count, block);
      for (std::int64_t channel = plane; channel < last; ++channel) {
        scale_plane(block, how.factors[channel], how.offsets[channel], count, out + channel * how.pixels + start);
      }
    }
  }
}

}  // namespace

}  // namespace medimg

// Normalizes `count` images (planes, pixels) of one type into `out` (count, channels, pixels). Returns -1 if memory is
// short.
MEDIMG_API std::int32_t medimg_normalize(const void* const* images, std::int64_t count, std::int32_t type,
                                         std::int64_t planes, std::int64_t channels, std::int64_t pixels,
                                         const float* factors, const float* offsets, float* out,
                                         std::int32_t threads) {
  const medimg::Normalizing how{planes, channels, pixels, factors, offsets};
  std::atomic<std::int64_t> next{0};
  const auto work = [&](std::int64_t) {
    for (std::int64_t n = next++; n < count; n = next++) {
      float* to = out + n * channels * pixels;
      if (type == medimg::kUint8) {
        medimg::normalize(how, static_cast<const std::uint8_t*>(images[n]), to);
      } else if (type == medimg::kFloat16) {
        medimg::normalize(how, static_cast<const std::uint16_t*>(images[n]), to);
      } else {
        medimg::normalize(how, static_cast<const float*>(images[n]), to);
      }
    }
  };
  try {
    medimg::run_in_threads(std::min<std::int64_t>(threads, count), work);
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}
