// Decodes any bytes as a frame of RLE, and as palette indices: libFuzzer with the sanitizers of addresses and
// undefined behavior.
//   make fuzz-decoding FUZZ_SECONDS=3600
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

extern "C" std::int32_t medimg_decode_rle(const std::uint8_t*, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                                          std::uint8_t*, std::int64_t*);
extern "C" std::int32_t medimg_apply_palette(const void*, std::int32_t, std::int64_t, std::int64_t,
                                             const std::uint8_t*, std::int64_t, std::uint8_t*);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) {
    return 0;
  }
  const std::int64_t samples = data[0] % 5, width = data[1] % 9, plane = data[2] + 256 * (data[3] % 32);
  // copies of exactly these sizes, so that a byte too many is found
  std::vector<std::uint8_t> frame(data + 4, data + size);
  if (data[0] >= 128 && frame.size() >= 4) {
    // a header that is accepted, which few are
    frame[0] = static_cast<std::uint8_t>(samples * width);
    frame[1] = frame[2] = frame[3] = 0;
  }
  std::vector<std::uint8_t> out(static_cast<std::size_t>(samples * width * plane));
  std::int64_t held = plane;
  const std::int32_t state = medimg_decode_rle(frame.data(), static_cast<std::int64_t>(frame.size()), samples, width,
                                               plane, out.data(), &held);
  if (held < 0 || held > plane || (state == 0 && held != plane) || (state == 2) != (held < plane)) {
    std::abort();
  }
  const std::int32_t type = data[0] % 5;
  const std::int64_t each = type < 2 ? 1 : 2, count = static_cast<std::int64_t>(frame.size()) / each;
  std::vector<std::uint16_t> aligned((frame.size() + 1) / 2);
  std::copy(frame.begin(), frame.end(), reinterpret_cast<std::uint8_t*>(aligned.data()));
  std::vector<std::uint8_t> colors(static_cast<std::size_t>(3 * count));
  const std::vector<std::uint8_t> table(static_cast<std::size_t>(3 * data[2]));
  medimg_apply_palette(aligned.data(), type, count, static_cast<std::int64_t>(data[3]) * 300 - 33000, table.data(),
                       data[2], colors.data());
  return 0;
}
