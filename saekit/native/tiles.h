// Rows times weights in bfloat16 with float32 sums, for processors with AVX512-BF16.
//
// VDPBF16PS adds products of two neighbouring numbers, so both matrices are packed in pairs of
// columns: inputs in tiles of TILE rows, for each pair that of every row; weights alike in panels
// of PANEL rows (`in_panels` of saekit/activations/products.py).
#pragma once

#include <cstdint>
#include <cstring>

constexpr int64_t TILE = 12, PANEL = 16;  // 24 vectors of sums, in 32 registers

// Whether this processor has the instruction.
extern "C" int supported() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

#if defined(__AVX512BF16__)
#include <immintrin.h>

// Puts a row of 2 * `pairs` bfloat16 numbers into its tile.
inline void pack_row(const uint16_t* row, int64_t pairs, int64_t place, uint32_t* tiles) {
    uint32_t* to = tiles + place / TILE * TILE * pairs + place % TILE;
    for (int64_t i = 0; i < pairs; i++) std::memcpy(to + i * TILE, row + 2 * i, 4);
}

#define ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

// One tile of rows by two panels of weights; `use` gets the number of each row with its two vectors
// of sums.  These have names: arrays would live in memory.
template <class Use>
inline void multiply_tile(const uint32_t* x, const uint32_t* w, int64_t pairs, Use&& use) {
    const uint32_t* second = w + PANEL * pairs;
#define DECLARE(r) __m512 a##r = _mm512_setzero_ps(), b##r = a##r;
    ROWS(DECLARE)
    for (int64_t i = 0; i < pairs; i++) {
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w + i * PANEL);
        const __m512bh w1 = (__m512bh)_mm512_loadu_si512(second + i * PANEL);
#define ADD(r)                                                                      \
    {                                                                               \
        const __m512bh two = (__m512bh)_mm512_set1_epi32(int32_t(x[i * TILE + r])); \
        a##r = _mm512_dpbf16_ps(a##r, w0, two);                                     \
        b##r = _mm512_dpbf16_ps(b##r, w1, two);                                     \
    }
        ROWS(ADD)
    }
#define USE(r) use(r, a##r, b##r);
    ROWS(USE)
}

#undef ROWS
#undef DECLARE
#undef ADD
#undef USE
#endif
