/* float32 weights [d_out, d_in] times a few rows of x. */
#ifndef FLOATS_H
#define FLOATS_H
#include "vectors.h"

/* m rows of x times r rows of W. m and r are constants where this is called. */
INLINE void tile_float(const int m, const int r, const float *w, const float *x, int64_t x_stride, int64_t d_in, float *out) {
  const wide none = {0};
  wide acc[8][8];
  float rest[8][8];
  for (int i = 0; i < m; i++)
    for (int j = 0; j < r; j++) acc[i][j] = none, rest[i][j] = 0;
  int64_t k = 0;
  for (; k + WIDE <= d_in; k += WIDE) {
    wide b[8];
    for (int j = 0; j < r; j++) b[j] = load_wide(w + j * d_in + k);
    for (int i = 0; i < m; i++) {
      wide a = load_wide(x + i * x_stride + k);
      for (int j = 0; j < r; j++) acc[i][j] += a * b[j];
    }
  }
  for (; k < d_in; k++)
    for (int i = 0; i < m; i++)
      for (int j = 0; j < r; j++) rest[i][j] += x[i * x_stride + k] * w[j * d_in + k];
  for (int i = 0; i < m; i++)
    for (int j = 0; j < r; j++) out[i * LANES + j] = across_wide(acc[i][j]) + rest[i][j];
}

enum { FLOAT_COLUMNS = WIDE == 16 ? 4 : 2 }; /* rows of W at a time, so that all sums stay in registers */

static void tiles_float(int m, int many, const float *w, const float *x, int64_t x_stride, int64_t d_in, float *out) {
  int j = 0;
  if (m == 1)
    for (; j + 4 <= many; j += 4) tile_float(1, 4, w + j * d_in, x, x_stride, d_in, out + j);
  if (m == 2)
    for (; j + FLOAT_COLUMNS <= many; j += FLOAT_COLUMNS) tile_float(2, FLOAT_COLUMNS, w + j * d_in, x, x_stride, d_in, out + j);
  if (m == 3)
    for (; j + FLOAT_COLUMNS <= many; j += FLOAT_COLUMNS) tile_float(3, FLOAT_COLUMNS, w + j * d_in, x, x_stride, d_in, out + j);
  if (m == 4)
    for (; j + FLOAT_COLUMNS <= many; j += FLOAT_COLUMNS) tile_float(4, FLOAT_COLUMNS, w + j * d_in, x, x_stride, d_in, out + j);
  for (; j < many; j++)
    for (int i = 0; i < m; i++) tile_float(1, 1, w + j * d_in, x + i * x_stride, x_stride, d_in, out + i * LANES + j);
}
#endif
