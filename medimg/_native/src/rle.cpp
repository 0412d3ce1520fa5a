// Frames of DICOM RLE (PS3.5 annex G): a segment of PackBits for each byte of a sample, the highest first.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "api.h"
#include "little_endian.h"

namespace medimg {
namespace {

constexpr std::int64_t kHeader = 64;
constexpr std::int64_t kMostSegments = 15;
constexpr int kNoOperation = 128;
constexpr int kMostBytes = 8;
constexpr std::int64_t kLongest = 128;
// Values of a sample that are unpacked at a time: all of its bytes stay in the fastest cache.
constexpr std::int64_t kPiece = 4096;

// The bytes of one segment, in pieces of any size. A run that does not end in the segment is no run.
class Runs {
 public:
  Runs(const std::uint8_t* start, const std::uint8_t* end) : at_(start), end_(end) {}

  // Writes the next bytes; returns how many there were, fewer than wanted only at the end of the segment.
  std::int64_t read(std::uint8_t* out, std::int64_t wanted) {
    std::int64_t done = 0;
    while (done < wanted && (left_ > 0 || start_run())) {
      const std::int64_t count = std::min(left_, wanted - done);
      if (is_literal_) {
        std::memcpy(out + done, at_, static_cast<std::size_t>(count));
        at_ += count;
      } else {
        std::memset(out + done, *at_, static_cast<std::size_t>(count));
        at_ += count == left_ ? 1 : 0;
      }
      left_ -= count;
      done += count;
      if (left_ == 0) {
        done += read_whole_runs(out + done, wanted - done);
      }
    }
    return done;
  }

 private:
  bool start_run() {
    while (at_ < end_ && *at_ == kNoOperation) {
      ++at_;
    }
    if (at_ >= end_) {
      return false;
    }
    const int code = *at_;
    is_literal_ = code < kNoOperation;
    if (end_ - at_ < (is_literal_ ? code + 2 : 2)) {
      at_ = end_;
      return false;
    }
    ++at_;
    left_ = is_literal_ ? code + 1 : 257 - code;
    return true;
  }

  // The same for runs far from both ends: the longest is written whatever its length, as branches on lengths, which
  // can't be foreseen, take longer.
  std::int64_t read_whole_runs(std::uint8_t* out, std::int64_t wanted) {
    std::int64_t done = 0;
    while (wanted - done >= kLongest && end_ - at_ > kLongest) {
      const int code = *at_;
      if (code < kNoOperation) {
        std::memcpy(out + done, at_ + 1, kLongest);
        done += code + 1;
        at_ += code + 2;
      } else if (code > kNoOperation) {
        std::memset(out + done, at_[1], kLongest);
        done += 257 - code;
        at_ += 2;
      } else {
        ++at_;
      }
    }
    return done;
  }

  const std::uint8_t* at_;
  const std::uint8_t* end_;
  std::int64_t left_ = 0;
  bool is_literal_ = false;
};

// Joins the bytes of values, the highest first; each row of `bytes` has kPiece of them.
template <int width>
void join(const std::uint8_t (*bytes)[kPiece], std::int64_t count, std::uint8_t* out) {
  for (std::int64_t n = 0; n < count; ++n) {
    for (int k = 0; k < width; ++k) {
      out[n * width + k] = bytes[width - 1 - k][n];
    }
  }
}

void join(const std::uint8_t (*bytes)[kPiece], std::int64_t width, std::int64_t count, std::uint8_t* out) {
  if (width == 2) {
    join<2>(bytes, count, out);
  } else if (width == 4) {
    join<4>(bytes, count, out);
  } else {
    join<8>(bytes, count, out);
  }
}

// Unpacks the segments of one sample; returns the bytes of the first that is too short, or `plane`.
std::int64_t unpack_sample(Runs* runs, std::int64_t width, std::int64_t plane, std::uint8_t* out) {
  if (width == 1) {
    return runs[0].read(out, plane);
  }
  std::uint8_t bytes[kMostBytes][kPiece];
  std::int64_t least = plane, shortest = width;
  for (std::int64_t start = 0; start < plane; start += kPiece) {
    const std::int64_t count = std::min(kPiece, plane - start);
    for (std::int64_t k = 0; k < shortest; ++k) {
      const std::int64_t read = runs[k].read(bytes[k], count);
      if (read < count) {
        // only those before it may still be found too short
        least = start + read;
        shortest = k;
      }
    }
    if (shortest == width) {
      join(bytes, width, count, out + start * width);
    }
  }
  return least;
}

}  // namespace
}  // namespace medimg

// Decodes the frame in data[0..size) to `samples` planes of `plane` values of `width` bytes (1, 2, 4 or 8), which it
// writes to `out`. Returns 0; 1 if the header is not one of samples * width segments; 2 if a segment is too short: then
// `held` is how many bytes the first such segment has.
MEDIMG_API std::int32_t medimg_decode_rle(const std::uint8_t* data, std::int64_t size, std::int64_t samples,
                                          std::int64_t width, std::int64_t plane, std::uint8_t* out,
                                          std::int64_t* held) {
  using namespace medimg;
  if (size < kHeader || (width != 1 && width != 2 && width != 4 && width != 8)) {
    return 1;
  }
  const std::int64_t segments = samples * width;
  if (segments < 1 || segments > kMostSegments || load32(data) != segments) {
    return 1;
  }
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    Runs runs[kMostBytes] = {{data, data}, {data, data}, {data, data}, {data, data},
                             {data, data}, {data, data}, {data, data}, {data, data}};
    for (std::int64_t k = 0; k < width; ++k) {
      const std::int64_t number = sample * width + k;
      const std::int64_t start = std::min<std::int64_t>(load32(data + 4 + 4 * number), size);
      const std::int64_t next = number + 1 < segments ? load32(data + 8 + 4 * number) : size;
      runs[k] = Runs(data + start, data + std::max(start, std::min(next, size)));
    }
    *held = unpack_sample(runs, width, plane, out + sample * plane * width);
    if (*held < plane) {
      return 2;
    }
  }
  return 0;
}
