#include "files.h"

#include <algorithm>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <string>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <string_view>
#endif

namespace medimg {

namespace {

// Most headers fit in the first window.
constexpr std::size_t kFirstWindow = 8192;
constexpr std::size_t kWindow = 65536;

}  // namespace

#if defined(_WIN32)

Folder::~Folder() = default;

File::File(const char* path, Folder&) : handle_(INVALID_HANDLE_VALUE) {
  const int count = MultiByteToWideChar(CP_UTF8, 0, path, -1, nullptr, 0);
  if (count <= 0) {
    return;
  }
  std::wstring wide(static_cast<std::size_t>(count), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path, -1, &wide[0], count);
  handle_ = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                        nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle_ != INVALID_HANDLE_VALUE && GetFileType(handle_) != FILE_TYPE_DISK) {
    CloseHandle(handle_);
    handle_ = INVALID_HANDLE_VALUE;
  }
}

File::~File() {
  if (handle_ != INVALID_HANDLE_VALUE) {
    CloseHandle(handle_);
  }
}

bool File::is_open() const { return handle_ != INVALID_HANDLE_VALUE; }

std::uint64_t File::size() const {
  LARGE_INTEGER found;
  return GetFileSizeEx(handle_, &found) ? static_cast<std::uint64_t>(found.QuadPart) : 0;
}

std::size_t File::read(std::uint64_t offset, std::uint8_t* to, std::size_t size) const {
  OVERLAPPED place = {};
  place.Offset = static_cast<DWORD>(offset);
  place.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD count = 0;
  if (!ReadFile(handle_, to, static_cast<DWORD>(size), &count, &place)) {
    return 0;
  }
  return count;
}

#else

namespace {

// without waiting for a pipe in place of a file; pread refuses it
constexpr int kReadOnly = O_RDONLY | O_NONBLOCK | O_CLOEXEC;

}  // namespace

Folder::~Folder() { close(); }

void Folder::close() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    descriptor_ = -1;
  }
}

int Folder::open_file(const char* path) {
  const char* separator = std::strrchr(path, '/');
  // one that is too long is refused, as it will be when the file is read
  if (separator == nullptr || std::strlen(path) >= PATH_MAX) {
    return ::open(path, kReadOnly);
  }
  const std::string_view parent(path, static_cast<std::size_t>(separator - path) + 1);
  if (parent != path_) {
    close();
    path_ = parent;
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  }
  return descriptor_ < 0 ? ::open(path, kReadOnly) : ::openat(descriptor_, separator + 1, kReadOnly);
}

File::File(const char* path, Folder& folder) : descriptor_(folder.open_file(path)) {}

File::~File() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

bool File::is_open() const { return descriptor_ >= 0; }

std::uint64_t File::size() const {
  struct stat found;
  return ::fstat(descriptor_, &found) == 0 && S_ISREG(found.st_mode) ? static_cast<std::uint64_t>(found.st_size)
                                                                     : 0;
}

std::size_t File::read(std::uint64_t offset, std::uint8_t* to, std::size_t size) const {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count = ::pread(descriptor_, to + done, size - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      return count < 0 ? 0 : done;
    }
    done += static_cast<std::size_t>(count);
    // a short read of a regular file is its end, but for rare interruptions: one more call says so
  }
  return done;
}

#endif

FileSource::FileSource(const File& file, std::vector<std::uint8_t>& buffer) : file_(file), buffer_(buffer) {
  buffer_.resize(std::max(buffer_.size(), kWindow));
  length_ = file_.read(0, buffer_.data(), kFirstWindow);
}

const std::uint8_t* FileSource::refill(std::uint64_t offset, std::size_t size) {
  if (offset > UINT64_MAX / 2) {
    return nullptr;
  }
  const std::size_t wanted = std::max(size, kWindow);
  if (buffer_.size() < wanted) {
    buffer_.resize(wanted);
  }
  begin_ = offset;
  length_ = file_.read(offset, buffer_.data(), wanted);
  return length_ >= size ? buffer_.data() : nullptr;
}

}  // namespace medimg
