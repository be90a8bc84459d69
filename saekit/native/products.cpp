// y = x W^T + b, or GELU of it, in bfloat16 with float32 sums, for processors with AVX512-BF16.
//
// Weights are packed in panels by products.py.

#include "tiles.h"

#include <algorithm>
#include <vector>

#if defined(__AVX512BF16__)

namespace {

constexpr int64_t BLOCK = 21;  // tiles that stay in the second-level cache

// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 = x / (1 + e^(-2 u)), u the argument of tanh;
// relative error below 2^-12, bfloat16 has 2^-9.
inline __m512 gelu(__m512 x) {
    const __m512 square = _mm512_mul_ps(x, x), c = _mm512_set1_ps(-2.30220819f);  // -2 u log2(e) / x
    __m512 t = _mm512_mul_ps(x, _mm512_fmadd_ps(square, _mm512_set1_ps(-0.102943241f), c));
    t = _mm512_min_ps(t, _mm512_set1_ps(120.0f));  // beyond, the result is 0 all the same
    const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(t, whole);  // 2^f by its Taylor series, |f| <= 1 / 2
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.00961812911f), _mm512_set1_ps(0.0555041087f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240226507f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693147181f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    const __m512 divisor = _mm512_add_ps(_mm512_scalef_ps(p, whole), _mm512_set1_ps(1.0f));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(divisor));
}

template <bool GELU>
inline void write(__m512 sum, const float* bias, uint16_t* out) {
    __m512 value = _mm512_add_ps(sum, _mm512_loadu_ps(bias));
    if (GELU) value = gelu(value);
    const __m256bh narrow = _mm512_cvtneps_pbh(value);
    std::memcpy(out, &narrow, sizeof narrow);
}

// One tile of rows by two panels of weights.
template <bool GELU>
void multiply(const uint32_t* x, const uint32_t* w, int64_t pairs, int64_t rows, const float* bias,
              uint16_t* out, int64_t stride) {
    multiply_tile(x, w, pairs, [&](int64_t row, __m512 left, __m512 right) {
        if (row >= rows) return;
        write<GELU>(left, bias, out + row * stride);
        write<GELU>(right, bias + PANEL, out + row * stride + PANEL);
    });
}

}  // namespace

extern "C" {

// `inputs` is even, `outputs` a multiple of 2 PANEL.
void product(const uint16_t* x, const uint32_t* W, const float* bias, int64_t rows, int64_t inputs,
             int64_t outputs, int64_t with_gelu, uint16_t* out) {
    const int64_t pairs = inputs / 2, tiles = (rows + TILE - 1) / TILE;
    auto run = with_gelu ? multiply<true> : multiply<false>;
#pragma omp parallel
    {
        std::vector<uint32_t> packed(BLOCK * TILE * pairs);
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < tiles; first += BLOCK) {
            const int64_t last = std::min(tiles, first + BLOCK);
            for (int64_t row = first * TILE; row < last * TILE; row++)
                pack_row(x + std::min(row, rows - 1) * inputs, pairs, row - first * TILE,
                         packed.data());
            for (int64_t o = 0; o < outputs; o += 2 * PANEL)
                for (int64_t t = first; t < last; t++)
                    run(packed.data() + (t - first) * TILE * pairs, W + o * pairs, pairs,
                        std::min(TILE, rows - t * TILE), bias + o, out + t * TILE * outputs + o,
                        outputs);
        }
    }
}

}  // extern "C"

#endif
