// Reads the pixels of single-frame files whose headers equal one that was parsed.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string_view>
#include <vector>

#include "api.h"
#include "files.h"
#include "header_walk.h"
#include "header_walker.h"
#include "threads.h"

// What the files have in common with the one that was parsed.
struct medimg_alike {
  const char* syntax;
  const char* wanted;        // elements that values depend on, joined
  std::int64_t wanted_size;
  std::int64_t tail;         // bytes from the pixels to the end of the file
  std::int64_t pixels;       // values of an image
  std::int32_t width;        // bytes of a value, 1 or 2
  std::int32_t is_signed;
  std::int32_t bits;         // Bits Stored, the lowest ones
  std::int32_t is_checked;   // whether a stored value may be out of `low` to `high`
  std::int32_t has_padding;  // whether values from `padding_low` to `padding_high` are padding
  std::int64_t low;
  std::int64_t high;
  std::int64_t padding_low;
  std::int64_t padding_high;
  std::int64_t factor;       // of the rescale, which wraps around
  std::int64_t offset;
};

namespace medimg {

namespace {

constexpr std::int64_t kMaxHead = 1 << 20;
constexpr std::uint32_t kPixelData = 0x7FE00010u;
// Files that a thread reads one after the other.
constexpr std::int64_t kMaxNeighbors = 8;
constexpr std::int64_t kNeighborBytes = 1 << 22;

std::string_view strip_padding(const std::uint8_t* value, std::uint64_t size) {
  while (size > 0 && (value[size - 1] == '\0' || value[size - 1] == ' ')) {
    --size;
  }
  return {reinterpret_cast<const char*>(value), static_cast<std::size_t>(size)};
}

// Whether the joined runs of wanted elements are those of the parsed header.
bool has_runs(const medimg_alike& like, const std::uint8_t* head, const std::uint64_t* answer) {
  const char* expected = like.wanted;
  const char* const end = expected + like.wanted_size;
  for (std::uint64_t run = 0; run < answer[kRuns]; ++run) {
    const std::uint64_t* place = answer + kFixedSize + 2 * run;
    const std::uint64_t size = place[1] - place[0];
    if (size > static_cast<std::uint64_t>(end - expected) ||
        std::memcmp(head + place[0], expected, static_cast<std::size_t>(size)) != 0) {
      return false;
    }
    expected += size;
  }
  return expected == end;
}

// Whether a header is that of a file like the parsed one, with this SOP Instance UID, and ends where the pixels start.
bool is_alike(const void* walker, const medimg_alike& like, std::string_view uid,
              const std::vector<std::uint8_t>& head) {
  std::array<std::uint64_t, kAnswerCapacity> answer;
  const std::int32_t status = medimg_walker_run(walker, head.data(), head.size(), answer.data(), answer.size());
  if (status != static_cast<std::int32_t>(Status::kOk) || answer[kPixelTag] != kPixelData ||
      answer[kPixelValue] != head.size() || answer[kPixelLength] != static_cast<std::uint64_t>(like.tail)) {
    return false;
  }
  const auto is_vr = [&](const char* vr) {
    return answer[kPixelVr] == load16(reinterpret_cast<const std::uint8_t*>(vr));
  };
  return (is_vr("OW") || is_vr("OB") || is_vr("\0\0")) &&
         strip_padding(head.data() + answer[kUidValue], answer[kUidSize]) == uid &&
         strip_padding(head.data() + answer[kSyntaxValue], answer[kSyntaxSize]) == like.syntax &&
         has_runs(like, head.data(), answer.data());
}

// Makes modality values of stored ones, in place; false if one of them is padding or out of its range. All is
// computed in the type of the values, which wraps around, as a processor takes more of the narrow ones at once.
template <class Unsigned, bool kIsChecked, bool kHasPadding>
bool rescale(const medimg_alike& like, Unsigned* values) {
  const auto mask = static_cast<Unsigned>((1ul << like.bits) - 1);
  const auto sign = static_cast<Unsigned>(like.is_signed != 0 ? 1ul << (like.bits - 1) : 0);
  const auto factor = static_cast<Unsigned>(like.factor);
  const auto offset = static_cast<Unsigned>(like.offset);
  const auto low = static_cast<Unsigned>(like.low);
  const auto span = static_cast<Unsigned>(like.high - like.low);
  const auto padding = static_cast<Unsigned>(like.padding_low);
  const auto padding_span = static_cast<Unsigned>(like.padding_high - like.padding_low);
  Unsigned refused = 0;
  for (std::int64_t n = 0; n < like.pixels; ++n) {
    const auto stored = static_cast<Unsigned>(static_cast<Unsigned>((values[n] & mask) ^ sign) - sign);
    if (kIsChecked) {
      refused = static_cast<Unsigned>(refused | (static_cast<Unsigned>(stored - low) > span ? 1u : 0u));
    }
    if (kHasPadding) {
      refused = static_cast<Unsigned>(refused | (static_cast<Unsigned>(stored - padding) <= padding_span ? 1u : 0u));
    }
    values[n] = static_cast<Unsigned>(static_cast<Unsigned>(stored * static_cast<unsigned>(factor)) + offset);
  }
  return refused == 0;
}

template <class Unsigned>
bool rescale(const medimg_alike& like, void* slot) {
  auto* values = static_cast<Unsigned*>(slot);
  if (like.has_padding != 0) {
    return rescale<Unsigned, true, true>(like, values);
  }
  return like.is_checked != 0 ? rescale<Unsigned, true, false>(like, values)
                              : rescale<Unsigned, false, false>(like, values);
}

bool read_slice(const void* walker, const medimg_alike& like, const char* name, const char* uid, void* slot,
                Folder& folder, std::vector<std::uint8_t>& head) {
  const File file(name, folder);
  if (!file.is_open()) {
    return false;
  }
  const auto start = static_cast<std::int64_t>(file.size()) - like.tail;
  if (start <= 0 || start > kMaxHead) {
    return false;
  }
  head.resize(static_cast<std::size_t>(start));
  if (file.read(0, head.data(), head.size()) != head.size() || !is_alike(walker, like, uid, head)) {
    return false;
  }
  const auto size = static_cast<std::size_t>(like.pixels * like.width);
  return file.read(static_cast<std::uint64_t>(start), static_cast<std::uint8_t*>(slot), size) == size &&
         (like.width == 1 ? rescale<std::uint8_t>(like, slot) : rescale<std::uint16_t>(like, slot));
}

}  // namespace

}  // namespace medimg

// Reads files, given by names with zeros between them, whose SOP Instance UIDs are given likewise, into slots of their
// own; `done` says which were read: others are unlike, unreadable, or have values that are padding or out of range, and
// their slots hold anything. Returns -1 if memory is short.
MEDIMG_API std::int32_t medimg_read_alike(const void* walker, const medimg_alike* like, const char* names,
                                          const char* uids, std::int64_t count, void* const* slots,
                                          std::int32_t threads, std::uint8_t* done) {
  try {
    std::vector<const char*> name_of, uid_of;
    for (std::int64_t n = 0; n < count; ++n) {
      name_of.push_back(names);
      uid_of.push_back(uids);
      names += std::strlen(names) + 1;
      uids += std::strlen(uids) + 1;
    }
    // neighbors by one thread: two threads would wait for each other where slices share a page of memory
    const std::int64_t bytes = std::max<std::int64_t>(like->pixels * like->width, 1);
    const std::int64_t neighbors = std::clamp<std::int64_t>(medimg::kNeighborBytes / bytes, 1, medimg::kMaxNeighbors);
    std::atomic<std::int64_t> next{0};
    const auto work = [&](std::int64_t) {
      medimg::Folder folder;
      std::vector<std::uint8_t> head;
      for (std::int64_t first = next++ * neighbors; first < count; first = next++ * neighbors) {
        for (std::int64_t n = first; n < std::min(first + neighbors, count); ++n) {
          done[n] = medimg::read_slice(walker, *like, name_of[static_cast<std::size_t>(n)],
                                       uid_of[static_cast<std::size_t>(n)], slots[n], folder, head);
        }
      }
    };
    medimg::run_in_threads(std::min<std::int64_t>(threads, (count + neighbors - 1) / neighbors), work);
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}
