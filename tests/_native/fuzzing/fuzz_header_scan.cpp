// Scans any bytes as a file: read by windows, checked, and numbered.
#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

struct WantedElement {
  std::uint32_t tag;
  char vr[2];
  std::uint8_t roles;
  std::uint8_t column;
};

struct Tables {
  std::int64_t files, groups, acquisitions;
  const std::int32_t *group_of_file, *acquisition_of_file, *class_of_group;
  const std::uint8_t* regular;
  const double* positions;
  const std::int64_t* offsets;
  const char* values;
};

extern "C" void* medimg_scan_new(const WantedElement*, std::int32_t, std::uint32_t, std::uint32_t, const char*,
                                 const char*);
extern "C" void medimg_scan_free(void*);
extern "C" std::int32_t medimg_scan_add(void*, const char*, std::int64_t, std::int32_t);
extern "C" void medimg_scan_tables(const void*, Tables*);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // roles as in header_scan.cpp: 1 common, 2 of a file, 4 of a series, 8 of an acquisition, 16 refused
  static const WantedElement wanted[] = {
      {0x00020010, {0, 0}, 1, 0},      {0x00080018, {'U', 'I'}, 2, 0},  {0x0008002A, {'D', 'T'}, 2, 3},
      {0x00080032, {'T', 'M'}, 2, 4},  {0x00080033, {'T', 'M'}, 2, 5},  {0x00080060, {0, 0}, 9, 0},
      {0x0008103E, {'L', 'O'}, 4, 4},  {0x00100020, {'L', 'O'}, 4, 3},  {0x00180050, {0, 0}, 8, 0},
      {0x0020000D, {'U', 'I'}, 4, 1},  {0x0020000E, {'U', 'I'}, 12, 0}, {0x00200011, {'I', 'S'}, 4, 2},
      {0x00200013, {'I', 'S'}, 2, 1},  {0x00200032, {'D', 'S'}, 2, 2},  {0x00280010, {0, 0}, 1, 0},
      {0x00281052, {0, 0}, 9, 0},      {0x52009229, {0, 0}, 16, 0},
  };
  static const std::string path = "/dev/shm/medimg-fuzz-" + std::to_string(::getpid());
  const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  if (file < 0 || ::write(file, data, size) != static_cast<ssize_t>(size)) {
    std::abort();
  }
  ::close(file);
  void* scan = medimg_scan_new(wanted, sizeof wanted / sizeof *wanted, 1 << 14, 1 << 10,
                               "1.2.840.10008.1.2 1.2.840.10008.1.2.1", "1.2.840.10008.1.2");
  const std::string twice = path + '\0' + path + '\0';
  if (scan == nullptr || medimg_scan_add(scan, twice.data(), 2, 1) != 0) {
    std::abort();
  }
  Tables tables;
  medimg_scan_tables(scan, &tables);
  // the same file twice is one group, or none
  if (tables.files != 2 || tables.group_of_file[0] != tables.group_of_file[1] || tables.groups > 1 ||
      tables.regular[0] != tables.regular[1]) {
    std::abort();
  }
  std::uint64_t sum = 0;
  for (std::int64_t n = 0; n < tables.offsets[12]; ++n) {
    sum += static_cast<unsigned char>(tables.values[n]);
  }
  medimg_scan_free(scan);
  return sum == UINT64_MAX;
}
