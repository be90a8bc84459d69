// See placing.py.

#include <algorithm>
#include <cstdint>

extern "C" {

// to[places[i]] = from[rows[i]] for n rows of bfloat16 numbers; whether all of them are finite.
int place_rows(const uint16_t* from, const int64_t* rows, const int64_t* places, int64_t n,
               int64_t d, uint16_t* to) {
    int wrong = 0;
#pragma omp parallel for schedule(static) reduction(| : wrong)
    for (int64_t i = 0; i < n; i++) {
        const uint16_t* row = from + rows[i] * d;
        uint16_t* place = to + places[i] * d;
        uint16_t largest = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t c = 0; c < d; c++) {
            place[c] = row[c];
            largest = std::max(largest, uint16_t(row[c] & 0x7FFF));
        }
        wrong |= largest >= 0x7F80;
    }
    return !wrong;
}

}  // extern "C"
