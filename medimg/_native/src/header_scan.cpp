// Reads the headers of many files and groups the files that differ in a few elements only.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "api.h"
#include "files.h"
#include "header_values.h"
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

// A run of bytes in a buffer.
struct Span {
  std::uint64_t start = 0;
  std::uint64_t size = 0;
};

// What was read of one file; numbers and offsets are those of its reader.
struct Record {
  bool is_usual = false;
  bool is_regular = true;  // no value of its own needs the parser
  std::int32_t reader = 0;
  std::int32_t common = -1;
  std::int32_t series = -1;
  std::int32_t acquisition = -1;
  std::uint64_t values_start = 0;  // of the file's own values, each after its length
  double position[3];              // not numbers if there is none
};

// Bytes that are appended in small pieces.
class Bytes {
 public:
  void append(const void* from, std::size_t size) {
    if (size > bytes_.size() - size_) {
      bytes_.resize(2 * (size_ + size));
    }
    if (size > 0) {
      std::memcpy(bytes_.data() + size_, from, size);
      size_ += size;
    }
  }

  void append(std::string_view text) { append(text.data(), text.size()); }

  template <class Number>
  void append_number(Number number) {
    append(&number, sizeof number);
  }

  void clear() { size_ = 0; }
  const char* data() const { return bytes_.data(); }
  std::size_t size() const { return size_; }
  std::string_view view() const { return {bytes_.data(), size_}; }
  std::string_view view(const Span& span) const {
    return view().substr(static_cast<std::size_t>(span.start), static_cast<std::size_t>(span.size));
  }

 private:
  std::vector<char> bytes_ = std::vector<char>(kFirstSize);
  std::size_t size_ = 0;
  static constexpr std::size_t kFirstSize = 256;
};

std::string_view strip_zeros(std::string_view value) {
  while (!value.empty() && value.back() == '\0') {
    value.remove_suffix(1);
  }
  return value;
}

// Numbers of byte strings in the order in which they were first seen.
class Interner {
 public:
  std::int32_t add(std::string_view key) {
    // most files have what the last one had
    if (last_ >= 0 && key == get(last_)) {
      return last_;
    }
    const auto found = numbers_.find(key);
    if (found != numbers_.end()) {
      return last_ = found->second;
    }
    kept_.emplace_back(key);
    last_ = size() - 1;
    numbers_.emplace(kept_.back(), last_);
    return last_;
  }

  const std::string& get(std::int32_t number) const { return kept_[static_cast<std::size_t>(number)]; }
  std::int32_t size() const { return static_cast<std::int32_t>(kept_.size()); }

 private:
  std::deque<std::string> kept_;  // does not move what it holds
  std::unordered_map<std::string_view, std::int32_t> numbers_;
  std::int32_t last_ = -1;
};

// Reads headers in one thread, and keeps what is equal in many files once.
class HeaderReader {
 public:
  HeaderReader(const std::vector<WantedElement>& wanted, const Limits& limits, const Syntaxes& syntaxes,
               const std::string& implicit, int file_columns, int series_columns)
      : wanted_(wanted),
        limits_(limits),
        syntaxes_(syntaxes),
        implicit_(implicit),
        file_vrs_(static_cast<std::size_t>(file_columns)),
        file_values_(static_cast<std::size_t>(file_columns)),
        series_values_(static_cast<std::size_t>(series_columns)) {
    for (const WantedElement& element : wanted) {
      if (element.roles & kFile) {
        file_vrs_[element.column] = {element.vr, 2};
      }
    }
  }

  Interner common;
  Interner series;
  Interner acquisitions;
  // The numbers that they have in the scan, -1 if not yet known.
  std::vector<std::int32_t> common_numbers;
  std::vector<std::int32_t> acquisition_numbers;
  Bytes values;  // of the files added last

  Record read(const char* path, Folder& folder);

 private:
  bool take(FileSource& source, const WantedElement& wanted, const Element& element, std::uint64_t end);
  void write(Record& record);
  void write_own(Record& record);

  const std::vector<WantedElement>& wanted_;
  const Limits& limits_;
  const Syntaxes& syntaxes_;
  const std::string& implicit_;
  std::vector<std::uint8_t> window_;
  // of the file that is being read
  Bytes common_;        // elements as they are written
  Bytes acquisition_;   // elements as AcquisitionElements has them
  bool has_acquisition_ = true;
  Bytes kept_;
  std::vector<std::string_view> file_vrs_;
  std::vector<Span> file_values_;  // in kept_
  std::vector<Span> series_values_;
  Bytes series_key_;
};

Record HeaderReader::read(const char* path, Folder& folder) {
  Record record;
  const File file(path, folder);
  if (!file.is_open()) {
    return record;
  }
  common_.clear();
  acquisition_.clear();
  kept_.clear();
  has_acquisition_ = true;
  std::fill(file_values_.begin(), file_values_.end(), Span{});
  std::fill(series_values_.begin(), series_values_.end(), Span{});
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
    has_acquisition_ = has_acquisition_ && !(wanted.roles & kAcquisition);
    return !is_key;
  }
  const std::uint64_t written = end - element.at;
  const auto* start = reinterpret_cast<const char*>(source.at(element.at, static_cast<std::size_t>(written)));
  if (start == nullptr) {
    return false;
  }
  const std::string_view value(start + (element.value - element.at), static_cast<std::size_t>(size));
  if (wanted.roles & kCommon) {
    common_.append(start, static_cast<std::size_t>(written));
  }
  if (wanted.roles & kAcquisition) {
    has_acquisition_ = has_acquisition_ && size <= limits_.acquisition;
    acquisition_.append_number(element.tag);
    acquisition_.append(element.vr, 2);
    acquisition_.append_number(static_cast<std::uint32_t>(size));
    acquisition_.append(value);
  }
  if (wanted.roles & (kFile | kSeries)) {
    const std::string_view text = strip_zeros(value);
    (wanted.roles & kFile ? file_values_ : series_values_)[wanted.column] = Span{kept_.size(), text.size()};
    kept_.append(text);
  }
  return true;
}

void HeaderReader::write(Record& record) {
  record.common = common.add(common_.view());
  if (has_acquisition_) {
    record.acquisition = acquisitions.add(acquisition_.view());
  }
  series_key_.clear();
  for (const Span& value : series_values_) {
    series_key_.append_number(static_cast<std::uint32_t>(value.size));
    series_key_.append(kept_.view(value));
  }
  record.series = series.add(series_key_.view());
  write_own(record);
  record.is_usual = true;
}

void HeaderReader::write_own(Record& record) {
  std::fill(std::begin(record.position), std::end(record.position), std::numeric_limits<double>::quiet_NaN());
  record.values_start = values.size();
  for (std::size_t column = 0; column < file_values_.size(); ++column) {
    const std::string_view value = kept_.view(file_values_[column]);
    values.append_number(static_cast<std::uint32_t>(value.size()));
    values.append(value);
    if (!value.empty()) {
      const std::string_view vr = file_vrs_[column];
      const bool is_regular = vr == "DS" ? read_point(value, record.position) : is_regular_value(vr, value);
      record.is_regular = record.is_regular && is_regular;
    }
  }
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

  // One row a file: its class and series or -1, its acquisition or -1, whether its own values are regular, and its
  // position (3).
  std::vector<std::int32_t> groups;
  std::vector<std::int32_t> acquisitions;
  std::vector<std::uint8_t> regular;
  std::vector<double> positions;
  // One row a file and column: offsets in `values`, with one more at the end.
  std::vector<std::int64_t> offsets{0};
  Bytes values;
  // One row a group: its class.
  std::vector<std::int32_t> classes;
  Interner series_keys;
  Interner acquisition_keys;

 private:
  void merge(const Record& record);

  std::vector<WantedElement> wanted_;
  Limits limits_;
  Syntaxes syntaxes_;
  std::string implicit_;
  int file_columns_ = 0;
  int series_columns_ = 0;
  std::vector<std::unique_ptr<HeaderReader>> readers_;
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
  while (readers_.size() < static_cast<std::size_t>(threads)) {
    readers_.push_back(std::make_unique<HeaderReader>(wanted_, limits_, syntaxes_, implicit_, file_columns_,
                                                      series_columns_));
  }
  std::vector<Record> records(names.size());
  std::atomic<std::size_t> next{0};
  run_in_threads(threads, [&](std::int64_t number) {
    constexpr std::size_t kBatch = 8;
    HeaderReader& reader = *readers_[static_cast<std::size_t>(number)];
    reader.values.clear();
    Folder folder;
    for (std::size_t first = next.fetch_add(kBatch); first < names.size(); first = next.fetch_add(kBatch)) {
      for (std::size_t n = first; n < std::min(first + kBatch, names.size()); ++n) {
        records[n] = reader.read(names[n], folder);
        records[n].reader = static_cast<std::int32_t>(number);
      }
    }
  });
  for (const Record& record : records) {
    merge(record);
  }
}

// Returns the number in the scan of a key that a reader has numbered itself.
std::int32_t renumber(std::vector<std::int32_t>& known, std::int32_t number, const Interner& mine, Interner& all) {
  if (known.size() < static_cast<std::size_t>(mine.size())) {
    known.resize(static_cast<std::size_t>(mine.size()), -1);
  }
  std::int32_t& found = known[static_cast<std::size_t>(number)];
  if (found < 0) {
    found = all.add(mine.get(number));
  }
  return found;
}

void HeaderScan::merge(const Record& record) {
  if (!record.is_usual) {
    groups.push_back(-1);
    acquisitions.push_back(-1);
    regular.push_back(0);
    positions.insert(positions.end(), 3, 0.0);
    offsets.insert(offsets.end(), static_cast<std::size_t>(file_columns_),
                   static_cast<std::int64_t>(values.size()));
    return;
  }
  HeaderReader& reader = *readers_[static_cast<std::size_t>(record.reader)];
  const std::int32_t number = renumber(reader.common_numbers, record.common, reader.common, class_keys_);
  // a series of a class: the number of the class before the values of the series
  Bytes key;
  key.append_number(number);
  key.append(reader.series.get(record.series));
  const std::int32_t group = series_keys.add(key.view());
  groups.push_back(group);
  if (static_cast<std::size_t>(group) == classes.size()) {
    classes.push_back(number);
  }
  acquisitions.push_back(record.acquisition < 0 ? -1
                                                : renumber(reader.acquisition_numbers, record.acquisition,
                                                           reader.acquisitions, acquisition_keys));
  regular.push_back(record.is_regular ? 1 : 0);
  positions.insert(positions.end(), std::begin(record.position), std::end(record.position));
  const char* value = reader.values.data() + record.values_start;
  for (int n = 0; n < file_columns_; ++n) {
    std::uint32_t size = 0;
    std::memcpy(&size, value, 4);
    values.append(value + 4, size);
    offsets.push_back(static_cast<std::int64_t>(values.size()));
    value += 4 + size;
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
  const std::uint8_t* regular;
  const double* positions;      // (files × 3)
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
  tables->regular = found.regular.data();
  tables->positions = found.positions.data();
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
