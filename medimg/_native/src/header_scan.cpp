// Reads the headers of many files and groups the files that differ in a few elements only.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "api.h"
#include "files.h"
#include "header_walk.h"
#include "threads.h"

namespace medimg {

namespace {

// What an element is kept for; several may hold.
enum Role : std::uint8_t {
  kCommon = 1,       // equal in all files of a class
  kFile = 2,         // a column of the table of files
  kSeries = 4,       // a column of the table of series
  kAcquisition = 8,  // kept for tables of acquisition attributes
  kRefused = 16,     // files that have it are left to the parser
};

struct WantedElement {
  std::uint32_t tag;
  char vr[2];  // that it must have in explicit files; zeros: any
  std::uint8_t roles;
  std::uint8_t column;
};

struct Limits {
  std::uint32_t value;        // bytes of a value, beyond which a file is left to the parser
  std::uint32_t acquisition;  // bytes of a value, beyond which no acquisition is kept
};

// A run of bytes in the arena of a thread or table.
struct Span {
  std::uint64_t start = 0;
  std::uint64_t size = 0;
};

// What was read of one file, in the arena of a thread.
struct Record {
  bool is_regular = false;
  bool has_acquisition = true;
  std::int32_t arena = 0;
  Span common;
  Span series;
  Span acquisition;
  std::uint64_t values_start = 0;  // of the file's own values, one after the other
};

using Bytes = std::vector<char>;

void append(Bytes& to, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const char*>(data);
  to.insert(to.end(), bytes, bytes + size);
}

std::size_t strip_zeros(const char* value, std::size_t size) {
  while (size > 0 && value[size - 1] == '\0') {
    --size;
  }
  return size;
}

// Numbers of byte strings in the order in which they were first seen.
class Interner {
 public:
  std::int32_t add(std::string_view key, bool& is_new) {
    const auto found = numbers_.find(key);
    is_new = found == numbers_.end();
    if (!is_new) {
      return found->second;
    }
    kept_.emplace_back(key);
    const auto number = static_cast<std::int32_t>(kept_.size() - 1);
    numbers_.emplace(kept_.back(), number);
    return number;
  }

  const std::string& get(std::int32_t number) const { return kept_[static_cast<std::size_t>(number)]; }
  std::int32_t size() const { return static_cast<std::int32_t>(kept_.size()); }

 private:
  std::deque<std::string> kept_;  // does not move what it holds
  std::unordered_map<std::string_view, std::int32_t> numbers_;
};

// Reads headers in one thread.
class HeaderReader {
 public:
  HeaderReader(const std::vector<WantedElement>& wanted, const Limits& limits, const Syntaxes& syntaxes,
               const std::string& implicit, int file_columns, int series_columns)
      : wanted_(wanted),
        limits_(limits),
        syntaxes_(syntaxes),
        implicit_(implicit),
        file_values_(static_cast<std::size_t>(file_columns)),
        series_values_(static_cast<std::size_t>(series_columns)) {}

  Bytes arena;

  Record read(const char* path);

 private:
  struct Taken {
    const WantedElement* wanted;
    Element element;
    Span value;
  };

  bool take(FileSource& source, const WantedElement& wanted, const Element& element, std::uint64_t end);
  void pack(const Taken& taken);
  void write(Record& record);

  const std::vector<WantedElement>& wanted_;
  const Limits& limits_;
  const Syntaxes& syntaxes_;
  const std::string& implicit_;
  std::vector<std::uint8_t> window_;
  std::vector<Taken> taken_;
  Bytes values_;
  std::vector<Span> file_values_;
  std::vector<Span> series_values_;
};

Record HeaderReader::read(const char* path) {
  Record record;
  const File file(path);
  if (!file.is_open()) {
    return record;
  }
  taken_.clear();
  values_.clear();
  FileSource source(file, window_);
  HeaderWalk<FileSource> walk(source, syntaxes_, implicit_);
  auto next = wanted_.begin();
  const Status status = walk.run([&](const Element& element, std::uint64_t end) {
    while (next != wanted_.end() && next->tag < element.tag) {
      ++next;
    }
    return next == wanted_.end() || next->tag != element.tag || take(source, *next, element, end);
  });
  if (status == Status::kOk) {
    write(record);
  }
  return record;
}

bool HeaderReader::take(FileSource& source, const WantedElement& wanted, const Element& element,
                        std::uint64_t end) {
  const bool is_typed = wanted.vr[0] != '\0' && element.vr[0] != '\0';
  if (wanted.roles & kRefused || (is_typed && std::memcmp(wanted.vr, element.vr, 2) != 0)) {
    return false;
  }
  const std::uint64_t size = end - element.value;
  const bool is_key = (wanted.roles & (kCommon | kFile | kSeries)) != 0;
  if (size > limits_.value) {
    if (is_key) {
      return false;
    }
    taken_.push_back({&wanted, element, Span{0, size}});  // too long to be kept
    return true;
  }
  const std::uint8_t* value = source.at(element.value, static_cast<std::size_t>(size));
  if (value == nullptr) {
    return false;
  }
  taken_.push_back({&wanted, element, Span{values_.size(), size}});
  append(values_, value, static_cast<std::size_t>(size));
  return true;
}

// Appends tag, VR, length and value to the arena, as AcquisitionElements has them.
void HeaderReader::pack(const Taken& taken) {
  const auto size = static_cast<std::uint32_t>(taken.value.size);
  append(arena, &taken.element.tag, 4);
  append(arena, taken.element.vr, 2);
  append(arena, &size, 4);
  append(arena, values_.data() + taken.value.start, size);
}

void HeaderReader::write(Record& record) {
  std::fill(file_values_.begin(), file_values_.end(), Span{});
  std::fill(series_values_.begin(), series_values_.end(), Span{});
  record.common.start = arena.size();
  for (const Taken& taken : taken_) {
    if (!(taken.wanted->roles & kCommon)) {
      continue;
    }
    pack(taken);
  }
  record.common.size = arena.size() - record.common.start;
  record.acquisition.start = arena.size();
  for (const Taken& taken : taken_) {
    const auto roles = taken.wanted->roles;
    if (roles & kFile) {
      file_values_[taken.wanted->column] = taken.value;
    }
    if (roles & kSeries) {
      series_values_[taken.wanted->column] = taken.value;
    }
    if (!(roles & kAcquisition) || !record.has_acquisition) {
      continue;
    }
    if (taken.value.size > limits_.acquisition) {
      record.has_acquisition = false;
      continue;
    }
    pack(taken);
  }
  record.acquisition.size = arena.size() - record.acquisition.start;
  const auto write_values = [this](const std::vector<Span>& columns) {
    for (const Span& value : columns) {
      const char* from = values_.data() + value.start;
      const auto size = static_cast<std::uint32_t>(strip_zeros(from, static_cast<std::size_t>(value.size)));
      append(arena, &size, 4);
      append(arena, from, size);
    }
  };
  record.series.start = arena.size();
  write_values(series_values_);
  record.series.size = arena.size() - record.series.start;
  record.values_start = arena.size();
  write_values(file_values_);
  record.is_regular = true;
}

class HeaderScan {
 public:
  HeaderScan(std::vector<WantedElement> wanted, Limits limits, Syntaxes syntaxes, std::string implicit)
      : wanted_(std::move(wanted)),
        limits_(limits),
        syntaxes_(std::move(syntaxes)),
        implicit_(std::move(implicit)) {
    for (const WantedElement& element : wanted_) {
      int& columns = element.roles & kFile ? file_columns_ : series_columns_;
      if (element.roles & (kFile | kSeries)) {
        columns = std::max(columns, element.column + 1);
      }
    }
  }

  void add(const char* paths, std::int64_t count, int threads);

  // One row a file: its class and series or -1, and its acquisition or -1.
  std::vector<std::int32_t> groups;
  std::vector<std::int32_t> acquisitions;
  // One row a file and column: offsets in `values`, with one more at the end.
  std::vector<std::int64_t> offsets{0};
  Bytes values;
  // One row a group: its class.
  std::vector<std::int32_t> classes;
  Interner series_keys;
  Interner acquisition_keys;

  int file_columns() const { return file_columns_; }

 private:
  void merge(const Record& record, const Bytes& arena);

  std::vector<WantedElement> wanted_;
  Limits limits_;
  Syntaxes syntaxes_;
  std::string implicit_;
  int file_columns_ = 0;
  int series_columns_ = 0;
  Interner class_keys_;
};

void HeaderScan::add(const char* paths, std::int64_t count, int threads) {
  std::vector<const char*> names;
  names.reserve(static_cast<std::size_t>(count));
  for (std::int64_t n = 0; n < count; ++n) {
    names.push_back(paths);
    paths += std::strlen(paths) + 1;
  }
  threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(count, 1)));
  std::vector<std::unique_ptr<HeaderReader>> readers;
  for (int n = 0; n < threads; ++n) {
    readers.push_back(std::make_unique<HeaderReader>(wanted_, limits_, syntaxes_, implicit_, file_columns_,
                                                     series_columns_));
  }
  std::vector<Record> records(names.size());
  std::atomic<std::size_t> next{0};
  run_in_threads(threads, [&](std::int64_t number) {
    constexpr std::size_t kBatch = 8;
    HeaderReader& reader = *readers[static_cast<std::size_t>(number)];
    for (std::size_t first = next.fetch_add(kBatch); first < names.size(); first = next.fetch_add(kBatch)) {
      for (std::size_t n = first; n < std::min(first + kBatch, names.size()); ++n) {
        records[n] = reader.read(names[n]);
        records[n].arena = static_cast<std::int32_t>(number);
      }
    }
  });
  for (const Record& record : records) {
    merge(record, readers[static_cast<std::size_t>(record.arena)]->arena);
  }
}

void HeaderScan::merge(const Record& record, const Bytes& arena) {
  const auto view = [&arena](const Span& span) {
    return std::string_view(arena.data() + span.start, static_cast<std::size_t>(span.size));
  };
  if (!record.is_regular) {
    groups.push_back(-1);
    acquisitions.push_back(-1);
    offsets.insert(offsets.end(), static_cast<std::size_t>(file_columns_),
                   static_cast<std::int64_t>(values.size()));
    return;
  }
  bool is_new = false;
  const std::int32_t number = class_keys_.add(view(record.common), is_new);
  // a series of a class: the number of the class before the values of the series
  std::string key(reinterpret_cast<const char*>(&number), sizeof number);
  key.append(view(record.series));
  groups.push_back(series_keys.add(key, is_new));
  if (is_new) {
    classes.push_back(number);
  }
  acquisitions.push_back(record.has_acquisition ? acquisition_keys.add(view(record.acquisition), is_new) : -1);
  const char* from = arena.data() + record.values_start;
  for (int n = 0; n < file_columns_; ++n) {
    std::uint32_t size = 0;
    std::memcpy(&size, from, 4);
    values.insert(values.end(), from + 4, from + 4 + size);
    offsets.push_back(static_cast<std::int64_t>(values.size()));
    from += 4 + size;
  }
}

}  // namespace

}  // namespace medimg

// The tables of a scan; valid until more files are added or it is freed.
struct MedimgScanTables {
  std::int64_t files;
  std::int64_t groups;
  std::int64_t acquisitions;
  const std::int32_t* group_of_file;
  const std::int32_t* acquisition_of_file;
  const std::int32_t* class_of_group;
  const std::int64_t* offsets;  // (files × columns + 1)
  const char* values;
};

struct MedimgWantedElement {
  std::uint32_t tag;
  char vr[2];
  std::uint8_t roles;
  std::uint8_t column;
};

// `wanted` is ascending by tag; `syntaxes` are UIDs with spaces between them. Null if memory is short.
MEDIMG_API void* medimg_scan_new(const MedimgWantedElement* wanted, std::int32_t count,
                                 std::uint32_t max_value, std::uint32_t max_acquisition,
                                 const char* syntaxes, const char* implicit) {
  try {
    std::vector<medimg::WantedElement> elements;
    for (std::int32_t n = 0; n < count; ++n) {
      elements.push_back({wanted[n].tag, {wanted[n].vr[0], wanted[n].vr[1]}, wanted[n].roles, wanted[n].column});
    }
    return new medimg::HeaderScan(std::move(elements), medimg::Limits{max_value, max_acquisition},
                                  medimg::split_syntaxes(syntaxes), implicit);
  } catch (const std::exception&) {
    return nullptr;
  }
}

MEDIMG_API void medimg_scan_free(void* scan) { delete static_cast<medimg::HeaderScan*>(scan); }

// Reads the headers of files, whose paths end in zeros; 0, or -1 if memory is short.
MEDIMG_API std::int32_t medimg_scan_add(void* scan, const char* paths, std::int64_t count,
                                        std::int32_t threads) {
  try {
    static_cast<medimg::HeaderScan*>(scan)->add(paths, count, threads);
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}

MEDIMG_API void medimg_scan_tables(const void* scan, MedimgScanTables* tables) {
  const auto& found = *static_cast<const medimg::HeaderScan*>(scan);
  tables->files = static_cast<std::int64_t>(found.groups.size());
  tables->groups = found.series_keys.size();
  tables->acquisitions = found.acquisition_keys.size();
  tables->group_of_file = found.groups.data();
  tables->acquisition_of_file = found.acquisitions.data();
  tables->class_of_group = found.classes.data();
  tables->offsets = found.offsets.data();
  tables->values = found.values.data();
}

// The values of a series, each after its length (uint32).
MEDIMG_API const char* medimg_scan_series(const void* scan, std::int32_t group, std::int64_t* size) {
  const std::string& key = static_cast<const medimg::HeaderScan*>(scan)->series_keys.get(group);
  *size = static_cast<std::int64_t>(key.size() - sizeof(std::int32_t));
  return key.data() + sizeof(std::int32_t);
}

// The packed elements of an acquisition.
MEDIMG_API const char* medimg_scan_acquisition(const void* scan, std::int32_t number, std::int64_t* size) {
  const std::string& key = static_cast<const medimg::HeaderScan*>(scan)->acquisition_keys.get(number);
  *size = static_cast<std::int64_t>(key.size());
  return key.data();
}
