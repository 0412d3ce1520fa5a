// Walks the elements of a DICOM header by their lengths alone, as medimg/io/dicom/header/elements.py does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "little_endian.h"

namespace medimg {

constexpr std::uint32_t kUndefinedLength = 0xFFFFFFFFu;
constexpr std::uint32_t kTransferSyntax = 0x00020010u;

enum class Status : std::int32_t {
  kOk = 0,
  kUnusual = 1,  // left to the parser
  kEnds = 2,     // the bytes end before the header does
};

// Offsets of an element at the top level; those of implicit VR have no letters.
struct Element {
  std::uint32_t tag;
  std::uint32_t length;
  std::uint64_t at;
  std::uint64_t value;
  char vr[2];
};

using Syntaxes = std::unordered_set<std::string>;

// Splits UIDs with spaces between them.
Syntaxes split_syntaxes(const char* joined);

inline std::uint32_t load_tag(const std::uint8_t* from) {
  return static_cast<std::uint32_t>(load16(from)) << 16 | load16(from + 2);
}

// Length of the header of an explicit element by the two letters of its VR: 8 or 12; 0 if there is no such VR.
class ExplicitSizes {
 public:
  constexpr ExplicitSizes() {
    add("AEASATCSDADSDTFDFLISLOLTPNSHSLSSSTTMUIULUS", 8);
    add("OBODOFOLOVOWSQSVUCUNURUTUV", 12);
  }

  int operator()(const std::uint8_t* vr) const {
    const unsigned first = vr[0] - 'A';
    const unsigned second = vr[1] - 'A';
    return first < kLetters && second < kLetters ? sizes_[kLetters * first + second] : 0;
  }

 private:
  static constexpr unsigned kLetters = 26;

  constexpr void add(const char* vrs, std::uint8_t size) {
    for (; *vrs != '\0'; vrs += 2) {
      sizes_[kLetters * static_cast<unsigned>(vrs[0] - 'A') + static_cast<unsigned>(vrs[1] - 'A')] = size;
    }
  }

  std::uint8_t sizes_[kLetters * kLetters] = {};
};

inline constexpr ExplicitSizes get_explicit_size;

template <class Source>
class HeaderWalk {
 public:
  HeaderWalk(Source& source, const Syntaxes& syntaxes, const std::string& implicit)
      : source_(source), syntaxes_(syntaxes), implicit_uid_(implicit) {}

  // Calls visit(element, end) for each element before the pixel data; stops if it returns false.
  template <class Visit>
  Status run(Visit&& visit);

  const Element& pixels() const { return pixels_; }

 private:
  static constexpr std::uint32_t kItem = 0xFFFEE000u;
  static constexpr std::uint32_t kItemEnd = 0xFFFEE00Du;
  static constexpr std::uint32_t kSequenceEnd = 0xFFFEE0DDu;
  static constexpr std::uint32_t kMetaLength = 0x00020000u;
  static constexpr std::uint32_t kLastTag = 0x7FE00010u;
  static constexpr std::uint32_t kFirstPixelTag = 0x7FE00008u;
  static constexpr int kMaxDepth = 16;
  static constexpr int kMaxElements = 20000;

  template <class Visit>
  Status walk_meta(std::uint64_t& at, Visit&& visit);
  template <class Visit>
  Status walk_dataset(std::uint64_t at, Visit&& visit);
  Status skip_value(const Element& element, int depth, std::uint64_t& end);
  Status walk_sequence(const Element& sequence, int depth, std::uint64_t& end);
  Status walk_item(std::uint64_t& at, int depth);
  Status read_element(std::uint64_t at, bool implicit, Element& element);

  Source& source_;
  const Syntaxes& syntaxes_;
  const std::string& implicit_uid_;
  std::string syntax_;
  Element pixels_ = {};
  bool implicit_ = false;
  int count_ = 0;
};

template <class Source>
Status HeaderWalk<Source>::read_element(std::uint64_t at, bool implicit, Element& element) {
  const std::uint8_t* head = source_.at(at, 8);
  if (head == nullptr) {
    return Status::kEnds;
  }
  element.at = at;
  element.tag = load_tag(head);
  if (implicit) {
    element.vr[0] = element.vr[1] = '\0';
    element.length = load32(head + 4);
    element.value = at + 8;
    return Status::kOk;
  }
  std::memcpy(element.vr, head + 4, 2);
  const int size = get_explicit_size(head + 4);
  if (size == 8) {
    element.length = load16(head + 6);
  } else if (size == 12) {
    const std::uint8_t* length = source_.at(at + 8, 4);
    if (length == nullptr) {
      return Status::kEnds;
    }
    element.length = load32(length);
  } else {
    return Status::kUnusual;
  }
  element.value = at + static_cast<std::uint64_t>(size);
  return Status::kOk;
}

template <class Source>
template <class Visit>
Status HeaderWalk<Source>::run(Visit&& visit) {
  const std::uint8_t* mark = source_.at(128, 4);
  if (mark == nullptr || std::memcmp(mark, "DICM", 4) != 0) {
    return Status::kUnusual;
  }
  std::uint64_t at = 132;
  const Status status = walk_meta(at, visit);
  return status == Status::kOk ? walk_dataset(at, visit) : status;
}

template <class Source>
template <class Visit>
Status HeaderWalk<Source>::walk_meta(std::uint64_t& at, Visit&& visit) {
  std::uint32_t last = 0;
  bool is_known = false;
  while (true) {
    const std::uint8_t* head = source_.at(at, 8);
    if (head == nullptr) {
      return Status::kEnds;
    }
    if (load16(head) != 2) {
      break;
    }
    Element element;
    const Status status = read_element(at, false, element);
    if (status != Status::kOk) {
      return status;
    }
    if (element.tag <= last || element.length & 1) {
      return Status::kUnusual;
    }
    if (element.tag == kMetaLength && (std::memcmp(element.vr, "UL", 2) != 0 || element.length != 4)) {
      return Status::kUnusual;
    }
    if (element.tag == kTransferSyntax && std::memcmp(element.vr, "UI", 2) == 0) {
      const std::uint8_t* value = source_.at(element.value, element.length);
      if (value == nullptr) {
        return Status::kEnds;
      }
      syntax_.assign(reinterpret_cast<const char*>(value), element.length);
      syntax_.erase(syntax_.find_last_not_of(std::string("\0 ", 2)) + 1);
      is_known = syntaxes_.count(syntax_) > 0;
    }
    ++count_;
    last = element.tag;
    at = element.value + element.length;
    if (!visit(element, at)) {
      return Status::kUnusual;
    }
  }
  if (!is_known) {
    return Status::kUnusual;
  }
  implicit_ = syntax_ == implicit_uid_;
  const std::uint8_t* letters = source_.at(at + 4, 2);
  const auto is_upper = [](std::uint8_t c) { return c >= 'A' && c <= 'Z'; };
  if (implicit_ && letters != nullptr && is_upper(letters[0]) && is_upper(letters[1])) {
    return Status::kUnusual;
  }
  return Status::kOk;
}

template <class Source>
template <class Visit>
Status HeaderWalk<Source>::walk_dataset(std::uint64_t at, Visit&& visit) {
  std::uint32_t last = 0;
  while (true) {
    Element element;
    Status status = read_element(at, implicit_, element);
    if (status != Status::kOk) {
      return status;
    }
    if (element.tag <= last || element.tag > kLastTag) {
      return Status::kUnusual;
    }
    if (element.tag >= kFirstPixelTag && (element.tag <= kFirstPixelTag + 1 || element.tag == kLastTag)) {
      pixels_ = element;
      return count_ > kMaxElements ? Status::kUnusual : Status::kOk;
    }
    if (++count_ > kMaxElements) {
      return Status::kUnusual;
    }
    status = skip_value(element, 0, at);
    if (status != Status::kOk) {
      return status;
    }
    if (!visit(element, at)) {
      return Status::kUnusual;
    }
    last = element.tag;
  }
}

// Finds where an element ends: by its length, or as a sequence without one.
template <class Source>
Status HeaderWalk<Source>::skip_value(const Element& element, int depth, std::uint64_t& end) {
  if (element.length == kUndefinedLength) {
    return walk_sequence(element, depth, end);
  }
  if (element.length & 1) {
    return Status::kUnusual;
  }
  end = element.value + element.length;
  return Status::kOk;
}

template <class Source>
Status HeaderWalk<Source>::walk_sequence(const Element& sequence, int depth, std::uint64_t& end) {
  const bool is_sequence = implicit_ || std::memcmp(sequence.vr, "SQ", 2) == 0;
  if (!is_sequence || depth >= kMaxDepth || count_ > kMaxElements) {
    return Status::kUnusual;
  }
  std::uint64_t at = sequence.value;
  while (true) {
    Element item;
    Status status = read_element(at, true, item);
    if (status != Status::kOk) {
      return status;
    }
    if (++count_ > kMaxElements) {
      return Status::kUnusual;
    }
    if (item.tag == kSequenceEnd && item.length == 0) {
      end = item.value;
      return Status::kOk;
    }
    if (item.tag != kItem || (item.length & 1 && item.length != kUndefinedLength)) {
      return Status::kUnusual;
    }
    at = item.value;
    if (item.length != kUndefinedLength) {
      at += item.length;
      continue;
    }
    status = walk_item(at, depth + 1);
    if (status != Status::kOk) {
      return status;
    }
  }
}

template <class Source>
Status HeaderWalk<Source>::walk_item(std::uint64_t& at, int depth) {
  while (true) {
    Element element;
    Status status = read_element(at, true, element);
    if (status != Status::kOk) {
      return status;
    }
    if (element.tag == kItemEnd && element.length == 0) {
      ++count_;
      at = element.value;
      return Status::kOk;
    }
    status = read_element(at, implicit_, element);
    if (status != Status::kOk) {
      return status;
    }
    if (element.tag >> 16 == kItem >> 16) {
      return Status::kUnusual;
    }
    if (++count_ > kMaxElements) {
      return Status::kUnusual;
    }
    status = skip_value(element, depth, at);
    if (status != Status::kOk) {
      return status;
    }
  }
}

}  // namespace medimg
