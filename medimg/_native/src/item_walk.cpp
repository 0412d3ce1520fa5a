// Finds the elements of the items of a sequence by their lengths and delimiters, as
// medimg/io/dicom/header/item_elements.py does.
#include <cstring>

#include "api.h"
#include "files.h"
#include "header_walk.h"

namespace medimg {
namespace {

// End of a sequence or item of undefined length.
constexpr std::uint64_t kDelimiter = ~std::uint64_t{0};

// Where to put the elements of the items, and the number of elements up to the end of each item; null to count.
struct Found {
  std::uint64_t* elements;
  std::uint64_t* ends;
  std::uint64_t element_count;
  std::uint64_t item_count;
};

class ItemWalk {
 public:
  ItemWalk(MemorySource source, std::uint64_t size, bool implicit, std::uint64_t most, int max_depth, Found& found)
      : source_(source), size_(size), implicit_(implicit), left_(most), max_depth_(max_depth), found_(found) {}

  // Walks the items of a sequence up to an offset or its delimiter; `at` is then behind them.
  Status walk_items(std::uint64_t& at, std::uint64_t end, int depth, bool& is_empty) {
    is_empty = true;
    while (at != end) {
      const std::uint8_t* head = source_.at(at, 8);
      if (head == nullptr) {
        return Status::kEnds;
      }
      const std::uint32_t tag = load_tag(head), length = load32(head + 4);
      at += 8;
      if (tag == kSequenceEnd && length == 0 && end == kDelimiter) {
        return Status::kOk;
      }
      if (tag != kItem || depth > max_depth_ || !count()) {
        return Status::kUnusual;
      }
      const Status status = walk_elements(at, length == kUndefinedLength ? kDelimiter : at + length, depth);
      if (status != Status::kOk) {
        return status;
      }
      is_empty = false;
      if (depth == 0) {
        if (found_.ends != nullptr) {
          found_.ends[found_.item_count] = found_.element_count;
        }
        ++found_.item_count;
      }
    }
    return Status::kOk;
  }

 private:
  static constexpr std::uint32_t kItem = 0xFFFEE000u;
  static constexpr std::uint32_t kItemEnd = 0xFFFEE00Du;
  static constexpr std::uint32_t kSequenceEnd = 0xFFFEE0DDu;
  static constexpr std::uint32_t kCharacterSet = 0x00080005u;

  Status walk_elements(std::uint64_t& at, std::uint64_t end, int depth) {
    while (at != end) {
      const std::uint8_t* head = source_.at(at, 8);
      if (head == nullptr) {
        return Status::kEnds;
      }
      const std::uint32_t tag = load_tag(head);
      if (tag == kItemEnd && load32(head + 4) == 0 && end == kDelimiter) {
        at += 8;
        return Status::kOk;
      }
      std::uint64_t value = at + 8;
      std::uint32_t length = load32(head + 4);
      if (!implicit_) {
        const int size = get_explicit_size(head + 4);
        if (size == 12) {
          const std::uint8_t* longer = source_.at(value, 4);
          if (longer == nullptr) {
            return Status::kEnds;
          }
          length = load32(longer);
          value += 4;
        } else if (size == 8) {
          length = load16(head + 6);
        } else {
          return Status::kUnusual;
        }
      }
      if (tag >> 16 == kItem >> 16 || tag == kCharacterSet || !count()) {
        return Status::kUnusual;
      }
      const std::uint32_t vr = implicit_ ? 0 : load16(head + 4);
      std::uint64_t stop = at = value + length;
      if (length == kUndefinedLength) {
        const bool is_sequence = implicit_ || std::memcmp(head + 4, "SQ", 2) == 0;
        bool is_empty = true;
        at = value;
        const Status status = is_sequence ? walk_items(at, kDelimiter, depth + 1, is_empty) : Status::kUnusual;
        if (status != Status::kOk || is_empty) {
          return status == Status::kOk ? Status::kUnusual : status;
        }
        stop = at - 8;
      }
      if (end == kDelimiter ? at > size_ : at > end) {
        return end == kDelimiter ? Status::kEnds : Status::kUnusual;
      }
      if (depth == 0) {
        add({tag, vr, length, value, stop});
      }
    }
    return Status::kOk;
  }

  struct Row {
    std::uint64_t numbers[5];
  };

  void add(const Row& row) {
    if (found_.elements != nullptr) {
      std::memcpy(found_.elements + 5 * found_.element_count, row.numbers, sizeof row.numbers);
    }
    ++found_.element_count;
  }

  bool count() { return left_-- > 0; }

  MemorySource source_;
  std::uint64_t size_;
  bool implicit_;
  std::uint64_t left_;
  int max_depth_;
  Found& found_;
};

}  // namespace
}  // namespace medimg

// Walks the items of a sequence, up to the end of the bytes or, if `is_delimited`, to its delimiter, and no more
// than `most` elements and items. Of each element of an item: tag, VR, length, offset of the value, and its end;
// of each item, the number of elements up to its end. Without `elements` and `ends`, they are only counted:
// `counts` are those of elements and items, and the offset behind the sequence. Returns a Status.
MEDIMG_API std::int32_t medimg_locate_items(const std::uint8_t* data, std::uint64_t size, std::int32_t is_implicit,
                                            std::int32_t is_delimited, std::uint64_t most, std::int32_t max_depth,
                                            std::uint64_t* elements, std::uint64_t* ends, std::uint64_t* counts) {
  medimg::Found found = {elements, ends, 0, 0};
  const medimg::MemorySource source(data, static_cast<std::size_t>(size));
  medimg::ItemWalk walk(source, size, is_implicit != 0, most, max_depth, found);
  std::uint64_t at = 0;
  bool is_empty = true;
  const medimg::Status status = walk.walk_items(at, is_delimited != 0 ? medimg::kDelimiter : size, 0, is_empty);
  counts[0] = found.element_count;
  counts[1] = found.item_count;
  counts[2] = at;
  return static_cast<std::int32_t>(status);
}
