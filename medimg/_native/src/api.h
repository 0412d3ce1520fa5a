// The functions that Python calls; plain C types only. All numbers are little endian, as the files are.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define MEDIMG_API extern "C" __declspec(dllexport)
#else
#define MEDIMG_API extern "C" __attribute__((visibility("default")))
#endif
