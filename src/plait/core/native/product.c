/* y = x Wᵀ + b, weights read once a few rows of x. */
#include "codes.h"
#include "floats.h"

/* codes [d_out / 8, groups, bits, 8, 4] bytes, scale and least [d_out / 8, groups, 8] float16 (least, bias: NULL where there is none),
   x [rows, d_in], y [rows, d_out]; d_out counted up to whole eights in the weights. Returns 0, or 1 where memory is missing. */
int plait_product(const uint8_t *codes, const uint16_t *scale, const uint16_t *least, const float *bias, const float *from, float *y,
                  int64_t rows, int64_t d_in, int64_t d_out, int bits, int rounded, int threads) {
  Rows x = {.groups = (d_in + GROUP - 1) / GROUP};
  int64_t count = rows * x.groups, blocks = (d_out + LANES - 1) / LANES;
  char *room = malloc(count * (GROUP * (sizeof(float) + 1) + 3 * sizeof(float)) + 1);
  if (!room) return 1;
  x.exact = (float *)room;
  x.scale = x.exact + count * GROUP;
  x.sum = x.scale + count;
  x.total = (int32_t *)(x.sum + count);
  x.rounded = rounded ? (int8_t *)(x.total + count) : NULL;
#pragma omp parallel num_threads(threads) if (blocks * count > 4096)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) prepare(&x, row, from + row * d_in, d_in);
    for (int64_t begin = 0; begin < rows; begin += NEAR) { /* rows of x that stay in the first cache while W goes by */
      int64_t end = rows - begin < NEAR ? rows : begin + NEAR;
#pragma omp for schedule(static) nowait
      for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * LANES, many = d_out - first < LANES ? d_out - first : LANES;
        const uint16_t *d = scale + first * x.groups, *l = least ? least + first * x.groups : NULL;
        float add[LANES] = {0};
        if (bias) memcpy(add, bias + first, many * sizeof(float));
        for (int64_t at = begin; at < end; at += TILE) {
          int m = end - at < TILE ? (int)(end - at) : TILE;
          v8f out[TILE];
          (bits == 8 ? tiles8 : tiles4)(m, codes + first * x.groups * bits * 4, d, l, &x, at, out);
          for (int i = 0; i < m; i++)
            for (int r = 0; r < many; r++) y[(at + i) * d_out + first + r] = out[i][r] + add[r];
        }
      }
    }
  }
  free(room);
  return 0;
}

/* The same for float32 weights [d_out, d_in]. */
void plait_float_product(const float *weight, const float *bias, const float *x, float *y, int64_t rows, int64_t d_in, int64_t d_out,
                         int threads) {
  int64_t blocks = (d_out + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads) if (blocks * rows * d_in > 32768)
  for (int64_t begin = 0; begin < rows; begin += NEAR) {
    int64_t end = rows - begin < NEAR ? rows : begin + NEAR;
#pragma omp for schedule(static) nowait
    for (int64_t b = 0; b < blocks; b++) {
      int64_t first = b * LANES, many = d_out - first < LANES ? d_out - first : LANES;
      for (int64_t at = begin; at < end; at += TILE) {
        int m = end - at < TILE ? (int)(end - at) : TILE;
        float out[TILE][LANES];
        tiles_float(m, (int)many, weight + first * d_in, x + at * d_in, d_in, d_in, out[0]);
        for (int i = 0; i < m; i++)
          for (int r = 0; r < many; r++) y[(at + i) * d_out + first + r] = out[i][r] + (bias ? bias[first + r] : 0);
      }
    }
  }
}
