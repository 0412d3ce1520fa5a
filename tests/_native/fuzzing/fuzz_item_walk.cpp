// Walks any bytes as the items of a sequence, explicit and implicit, with and without a delimiter.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

extern "C" std::int32_t medimg_locate_items(const std::uint8_t* data, std::uint64_t size, std::int32_t is_implicit,
                                            std::int32_t is_delimited, std::uint64_t most, std::int32_t max_depth,
                                            std::uint64_t* elements, std::uint64_t* ends, std::uint64_t* counts);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // a copy of exactly this size, so that a byte too many is found
  const std::vector<std::uint8_t> copy(data, data + size);
  for (const std::int32_t way : {0, 1, 2, 3}) {
    const std::int32_t is_implicit = way & 1, is_delimited = way >> 1;
    std::uint64_t counts[3] = {};
    if (medimg_locate_items(copy.data(), size, is_implicit, is_delimited, 4096, 16, nullptr, nullptr, counts) != 0) {
      continue;
    }
    std::vector<std::uint64_t> elements(5 * counts[0]), ends(counts[1]);
    std::uint64_t again[3] = {};
    const std::int32_t status = medimg_locate_items(copy.data(), size, is_implicit, is_delimited, 4096, 16,
                                                    elements.data(), ends.data(), again);
    if (status != 0 || again[0] != counts[0] || again[1] != counts[1] || again[2] > size) {
      std::abort();
    }
    for (std::uint64_t n = 0; n < counts[0]; ++n) {
      if (elements[5 * n + 3] > elements[5 * n + 4] || elements[5 * n + 4] > size) {
        std::abort();
      }
    }
  }
  return 0;
}
