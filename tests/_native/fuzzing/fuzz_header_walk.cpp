// Walks any bytes as a header: libFuzzer with the sanitizers of addresses and undefined behavior.
//   make fuzz FUZZ_SECONDS=3600
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../../../medimg/_native/src/files.h"
#include "../../../medimg/_native/src/header_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string implicit = "1.2.840.10008.1.2";
  static const medimg::Syntaxes syntaxes = medimg::split_syntaxes("1.2.840.10008.1.2 1.2.840.10008.1.2.1");
  // a copy of exactly this size, so that a byte too many is found
  const std::vector<std::uint8_t> copy(data, data + size);
  medimg::MemorySource source(copy.data(), copy.size());
  medimg::HeaderWalk<medimg::MemorySource> walk(source, syntaxes, implicit);
  std::uint64_t sum = 0;
  walk.run([&](const medimg::Element& element, std::uint64_t end) {
    const std::uint64_t length = end - element.value;
    const std::uint8_t* value =
        length < size ? source.at(element.value, static_cast<std::size_t>(length)) : nullptr;
    for (std::uint64_t n = 0; value != nullptr && n < length; ++n) {
      sum += value[n];
    }
    return sum != UINT64_MAX;
  });
  return 0;
}
