// Reads byte ranges of files, on POSIX and Windows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace medimg {

// The folder of the file that was opened last, which is not looked up again for the next.
class Folder {
 public:
  Folder() = default;
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

 private:
  friend class File;
#if !defined(_WIN32)
  int open_file(const char* path);
  void close();

  std::string path_;  // with the separator at its end
  int descriptor_ = -1;
#endif
};

// A regular file that is open for reading; pipes and devices count as unreadable.
class File {
 public:
  File(const char* path, Folder& folder);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool is_open() const;
  // Returns the bytes of a regular file; 0 if it is none.
  std::uint64_t size() const;
  // Reads up to `size` bytes; returns fewer at the end of the file, and 0 after an error.
  std::size_t read(std::uint64_t offset, std::uint8_t* to, std::size_t size) const;

 private:
#if defined(_WIN32)
  void* handle_;
#else
  int descriptor_;
#endif
};

// Bytes in memory.
class MemorySource {
 public:
  MemorySource(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  // Returns `size` bytes from `offset` on; null if there are fewer.
  const std::uint8_t* at(std::uint64_t offset, std::size_t size) {
    return offset <= size_ && size <= size_ - offset ? data_ + offset : nullptr;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

// Bytes of a file, of which a window is in memory: what is skipped is not read.
class FileSource {
 public:
  FileSource(const File& file, std::vector<std::uint8_t>& buffer);

  // Returns `size` bytes from `offset` on, valid until the next call; null if the file ends before.
  const std::uint8_t* at(std::uint64_t offset, std::size_t size) {
    if (offset >= begin_ && offset - begin_ <= length_ && size <= length_ - (offset - begin_)) {
      return buffer_.data() + (offset - begin_);
    }
    return refill(offset, size);
  }

 private:
  const std::uint8_t* refill(std::uint64_t offset, std::size_t size);

  const File& file_;
  std::vector<std::uint8_t>& buffer_;
  std::uint64_t begin_ = 0;
  std::size_t length_ = 0;
};

}  // namespace medimg
