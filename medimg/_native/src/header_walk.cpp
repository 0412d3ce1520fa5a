#include "header_walk.h"

#include <algorithm>
#include <exception>

#include "api.h"
#include "files.h"
#include "header_walker.h"

namespace medimg {

Syntaxes split_syntaxes(const char* joined) {
  Syntaxes found;
  std::string name;
  for (; *joined != '\0'; ++joined) {
    if (*joined == ' ') {
      found.insert(name);
      name.clear();
    } else {
      name += *joined;
    }
  }
  found.insert(name);
  return found;
}

namespace {

struct Walker {
  Syntaxes syntaxes;
  std::string implicit;
  std::vector<std::uint32_t> wanted;   // ascending
  std::vector<std::uint32_t> refused;  // ascending
  std::uint32_t instance_uid;
};

bool contains(const std::vector<std::uint32_t>& tags, std::uint32_t tag) {
  return std::binary_search(tags.begin(), tags.end(), tag);
}

}  // namespace

}  // namespace medimg

// `syntaxes` are UIDs with spaces between them; the tags are ascending. Null if memory is short.
MEDIMG_API void* medimg_walker_new(const char* syntaxes, const char* implicit, const std::uint32_t* wanted,
                                   std::int32_t wanted_count, const std::uint32_t* refused,
                                   std::int32_t refused_count, std::uint32_t instance_uid) {
  try {
    return new medimg::Walker{medimg::split_syntaxes(syntaxes), implicit,
                              std::vector<std::uint32_t>(wanted, wanted + wanted_count),
                              std::vector<std::uint32_t>(refused, refused + refused_count), instance_uid};
  } catch (const std::exception&) {
    return nullptr;
  }
}

MEDIMG_API void medimg_walker_free(void* walker) { delete static_cast<medimg::Walker*>(walker); }

MEDIMG_API std::int32_t medimg_walker_run(const void* walker, const std::uint8_t* head, std::uint64_t size,
                                          std::uint64_t* answer, std::uint64_t capacity) {
  const auto& config = *static_cast<const medimg::Walker*>(walker);
  try {
    medimg::MemorySource source(head, static_cast<std::size_t>(size));
    medimg::HeaderWalk<medimg::MemorySource> walk(source, config.syntaxes, config.implicit);
    std::fill(answer, answer + medimg::kFixedSize, 0);
    std::size_t used = medimg::kFixedSize;
    const auto visit = [&](const medimg::Element& element, std::uint64_t end) {
      if (element.tag == config.instance_uid) {
        answer[medimg::kUidValue] = element.value;
        answer[medimg::kUidSize] = end - element.value;
      } else if (element.tag == medimg::kTransferSyntax) {
        answer[medimg::kSyntaxValue] = element.value;
        answer[medimg::kSyntaxSize] = end - element.value;
      } else if (medimg::contains(config.refused, element.tag)) {
        return false;
      }
      if (!medimg::contains(config.wanted, element.tag)) {
        return true;
      }
      if (used > medimg::kFixedSize && answer[used - 1] == element.at) {
        answer[used - 1] = end;
        return true;
      }
      if (used + 2 > capacity) {
        return false;
      }
      answer[used] = element.at;
      answer[used + 1] = end;
      used += 2;
      return true;
    };
    const medimg::Status status = walk.run(visit);
    const medimg::Element& pixels = walk.pixels();
    answer[medimg::kPixelTag] = pixels.tag;
    answer[medimg::kPixelAt] = pixels.at;
    answer[medimg::kPixelValue] = pixels.value;
    answer[medimg::kPixelLength] = pixels.length;
    answer[medimg::kPixelVr] = medimg::load16(reinterpret_cast<const std::uint8_t*>(pixels.vr));
    answer[medimg::kRuns] = (used - medimg::kFixedSize) / 2;
    return static_cast<std::int32_t>(status);
  } catch (const std::exception&) {
    return -1;
  }
}

// Raised with each change of these functions.
MEDIMG_API std::int32_t medimg_interface() { return 7; }
