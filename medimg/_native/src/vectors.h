// Wider vectors where the processor has them; results are the same, as nothing is fused or reordered.
#pragma once

#if defined(MEDIMG_NO_VECTORS)
#define MEDIMG_VECTORS
#elif defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define MEDIMG_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define MEDIMG_VECTORS
#endif
