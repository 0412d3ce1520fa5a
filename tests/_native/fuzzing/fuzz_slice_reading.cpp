// Reads any bytes as a slice that is like itself, with formats chosen by its last byte.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../../medimg/_native/src/header_walker.h"

struct medimg_alike {
  const char* syntax;
  const char* wanted;
  std::int64_t wanted_size, tail, pixels;
  std::int32_t width, is_signed, bits, is_checked, has_padding;
  std::int64_t low, high, padding_low, padding_high, factor, offset;
};

extern "C" void* medimg_walker_new(const char*, const char*, const std::uint32_t*, std::int32_t, const std::uint32_t*,
                                   std::int32_t, std::uint32_t);
extern "C" std::int32_t medimg_read_alike(const void*, const medimg_alike*, const char*, const char*, std::int64_t,
                                          void* const*, std::int32_t, std::uint8_t*);

namespace {

std::string strip(const std::uint8_t* value, std::uint64_t size) {
  std::string text(reinterpret_cast<const char*>(value), size);
  return text.erase(text.find_last_not_of(std::string("\0 ", 2)) + 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::uint32_t wanted[] = {0x00280010, 0x00280011, 0x00281052, 0x00281053};
  static const std::uint32_t refused[] = {0x52009229, 0x7FE00001};
  static void* walker = medimg_walker_new("1.2.840.10008.1.2 1.2.840.10008.1.2.1", "1.2.840.10008.1.2", wanted, 4,
                                          refused, 2, 0x00080018);
  static const std::string path = "/dev/shm/medimg-fuzz-slices-" + std::to_string(::getpid());
  const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  if (walker == nullptr || file < 0 || ::write(file, data, size) != static_cast<ssize_t>(size)) {
    std::abort();
  }
  ::close(file);
  std::array<std::uint64_t, medimg::kAnswerCapacity> answer;
  const std::int32_t status = medimg_walker_run(walker, data, size, answer.data(), answer.size());
  const bool is_usual = status == 0 && answer[medimg::kPixelLength] <= size;
  const std::uint8_t choice = size > 0 ? data[size - 1] : 0;
  medimg_alike like = {};
  std::string syntax, uid, joined;
  if (is_usual) {
    syntax = strip(data + answer[medimg::kSyntaxValue], answer[medimg::kSyntaxSize]);
    uid = strip(data + answer[medimg::kUidValue], answer[medimg::kUidSize]);
    for (std::uint64_t run = 0; run < answer[medimg::kRuns]; ++run) {
      const std::uint64_t* place = answer.data() + medimg::kFixedSize + 2 * run;
      joined.append(reinterpret_cast<const char*>(data + place[0]), place[1] - place[0]);
    }
  }
  like.syntax = syntax.c_str();
  like.wanted = joined.data();
  like.wanted_size = static_cast<std::int64_t>(joined.size());
  like.tail = is_usual ? static_cast<std::int64_t>(answer[medimg::kPixelLength]) : static_cast<std::int64_t>(choice);
  like.width = 1 + (choice & 1);
  like.pixels = like.tail / like.width;
  like.is_signed = choice >> 1 & 1;
  like.bits = 1 + (choice >> 2) % (8 * like.width);
  like.is_checked = choice >> 6 & 1;
  like.low = like.is_signed ? -100 : 0;
  like.high = 100;
  like.has_padding = choice >> 7;
  like.padding_low = 7;
  like.padding_high = 9;
  like.factor = -3;
  like.offset = -1024;
  // exactly as large as the pixels, so that a byte too many is found
  std::vector<std::uint16_t> slot(static_cast<std::size_t>((like.pixels * like.width + 1) / 2));
  std::vector<std::uint16_t> other(slot.size());
  void* slots[] = {slot.data(), other.data()};
  std::uint8_t done[2] = {};
  const std::string names = path + '\0' + path + '\0';
  uid = uid.c_str();  // up to a zero, as the next begins there
  const std::string uids = uid + '\0' + uid + '\0';
  if (medimg_read_alike(walker, &like, names.c_str(), uids.c_str(), 2, slots, 2, done) != 0 || done[0] != done[1]) {
    std::abort();
  }
  if (done[0] && slot != other) {
    std::abort();
  }
  return 0;
}
