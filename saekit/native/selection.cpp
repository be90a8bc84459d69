// Choosing the largest of bfloat16 preactivations on the CPU.  Compiled on first use by cpu.py, which
// also documents shapes; the same results, slower, come from reference.py.

#include <algorithm>
#include <cstdint>
#include <vector>
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 32;  // int16 values compared at once

// Bit i is set where p[i] >= threshold, for LANES values.
inline uint32_t at_least(const int16_t* p, int16_t threshold) {
#if defined(__AVX512BW__)
    return _mm512_cmpge_epi16_mask(_mm512_loadu_si512(p), _mm512_set1_epi16(threshold));
#else
    uint32_t mask = 0;
    for (int i = 0; i < LANES; i++) mask |= uint32_t(p[i] >= threshold) << i;
    return mask;
#endif
}

// The k-th largest of n numbers, n a multiple of LANES: bisection, as counting needs no branches.
inline int16_t kth_largest(const int16_t* p, int64_t n, int64_t k) {
    int32_t low = INT16_MIN, high = INT16_MAX;  // at least k reach low
    while (low < high) {
        const int32_t middle = (low + high + 1) >> 1;
        int64_t count = 0;
        for (int64_t i = 0; i < n; i += LANES) count += __builtin_popcount(at_least(p + i, int16_t(middle)));
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
    }
    return int16_t(low);
}

// A value that at least k of the n entries reach: the k-th largest of the maxima of disjoint
// groups of columns (each group with such a maximum holds one such entry).
int16_t lower_bound_of_kth(const int16_t* row, int64_t n, int64_t k, std::vector<int16_t>& maxima) {
    int64_t groups = 128;
    while (groups < 4 * k) groups *= 2;
    if (groups * 2 > n) return INT16_MIN;
    maxima.assign(row, row + groups);
    const int64_t whole = n / groups * groups;
    for (int64_t start = groups; start < whole; start += groups)
        for (int64_t g = 0; g < groups; g++) maxima[g] = std::max(maxima[g], row[start + g]);
    return kth_largest(maxima.data(), groups, k);
}

}  // namespace

extern "C" {

// The k largest of each row of bfloat16 numbers, seen as int16: positive ones are ordered by their
// bits, negative ones come below in reverse.  Of equal entries the first columns are taken; the
// chosen columns are in ascending order.
void largest(const int16_t* pre, int64_t tokens, int64_t n, int64_t k, int32_t* chosen) {
#pragma omp parallel
    {
        std::vector<int16_t> maxima, values(n + LANES);
        std::vector<int32_t> columns(n + LANES);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            const int16_t* row = pre + t * n;
            const int16_t bound = lower_bound_of_kth(row, n, k, maxima);
            int64_t count = 0, column = 0;
            auto keep = [&](int64_t at) {
                values[count] = row[at];
                columns[count++] = int32_t(at);
            };
            for (; column + LANES <= n; column += LANES)
                for (uint32_t mask = at_least(row + column, bound); mask; mask &= mask - 1)
                    keep(column + __builtin_ctz(mask));
            for (; column < n; column++)
                if (row[column] >= bound) keep(column);
            const int64_t padded = (count + LANES - 1) / LANES * LANES;
            std::fill(values.begin() + count, values.begin() + padded, INT16_MIN);
            const int16_t smallest = count > k ? kth_largest(values.data(), padded, k) : INT16_MIN;
            int64_t ties = k;  // entries equal to the smallest that are taken
            for (int64_t i = 0; i < count; i++) ties -= values[i] > smallest;
            int32_t* out = chosen + t * k;
            for (int64_t i = 0; i < count; i++)
                if (values[i] > smallest || (values[i] == smallest && ties-- > 0)) *out++ = columns[i];
        }
    }
}

// How many numbers have each bit pattern >= floor (BatchTopK's threshold is read off this).
void count_bits(const int16_t* pre, int64_t size, int16_t floor, int64_t* counts) {
#pragma omp parallel
    {
        std::vector<int64_t> own(1 << 15, 0);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < size / LANES; block++) {
            const int16_t* p = pre + block * LANES;
            for (uint32_t mask = at_least(p, floor); mask; mask &= mask - 1)
                own[p[__builtin_ctz(mask)]]++;
        }
#pragma omp critical
        for (int64_t i = 0; i < (1 << 15); i++) counts[i] += own[i];
    }
    for (int64_t i = size / LANES * LANES; i < size; i++)
        if (pre[i] >= floor) counts[pre[i]]++;
}

// Columns with bits >= floor of each row, row after row.  Two calls: features == nullptr counts
// into starts[t + 1]; after a cumulative sum the second one writes.
void at_or_above(const int16_t* pre, int64_t tokens, int64_t n, int16_t floor, int64_t* starts,
                 int32_t* features) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const int16_t* row = pre + t * n;
        int64_t count = 0, column = 0;
        int32_t* out = features ? features + starts[t] : nullptr;
        for (; column + LANES <= n; column += LANES) {
            uint32_t mask = at_least(row + column, floor);
            if (!out) {
                count += __builtin_popcount(mask);
                continue;
            }
            for (; mask; mask &= mask - 1) out[count++] = int32_t(column + __builtin_ctz(mask));
        }
        for (; column < n; column++)
            if (row[column] >= floor) {
                if (out) out[count] = int32_t(column);
                count++;
            }
        if (!out) starts[t + 1] = count;
    }
}

}  // extern "C"
