/* y = x Wᵀ + b: weights are read once a few rows of x, or once for many. */
#include "panels.h"

/* x [rows, d_in], y [rows, d_out]; the other pointers as in `Matrix`. Codes multiply x rounded where `rounded`. Returns 0, or 1 where
   memory is missing. */
int plait_product(const void *weight, const uint16_t *scales, const uint16_t *least, const float *bias, const float *from, float *y,
                  int64_t rows, int64_t d_in, int64_t d_out, int bits, int rounded, int threads) {
  Matrix w = {weight, scales, least, bias, d_in, d_out, bits};
  Rows x = {.groups = (d_in + GROUP - 1) / GROUP};
  int64_t count = rows * x.groups, blocks = (d_out + LANES - 1) / LANES;
  int64_t values = rounded ? 1 : sizeof(float); /* bytes of a value of x as it is kept */
  char *room = bits == 32 ? NULL : malloc(count * (GROUP * values + 3 * sizeof(float)) + 1);
  if (bits != 32) {
    if (!room) return 1;
    x.scale = (float *)room;
    x.sum = x.scale + count;
    x.total = (int32_t *)(x.sum + count);
    x.rounded = rounded ? (int8_t *)(x.total + count) : NULL;
    x.exact = rounded ? NULL : (float *)(x.total + count);
  }
  int missing = 0;
#pragma omp parallel num_threads(threads) if (blocks * count > 4096)
  {
    if (bits != 32) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row++) prepare(&x, row, from + row * d_in, d_in);
    }
#ifdef PLAIT_PANELS
    if (bits != 32 && rounded && rows >= FULL) {
      Panel p = {aligned_alloc(64, panel_bytes(x.groups))};
      p.scale = (float *)(p.codes + x.groups * PANEL * GROUP);
      p.least = bits == 4 ? p.scale + x.groups * PANEL : NULL;
      if (!p.codes) missing = 1;
      for (int64_t begin = 0, many = chunk_rows(x.groups); begin < rows; begin += many) {
        int64_t end = rows - begin < many ? rows : begin + many;
#pragma omp for schedule(dynamic) nowait
        for (int64_t panel = 0; panel < (d_out + PANEL - 1) / PANEL; panel++)
          if (p.codes) panel_product(&p, &w, &x, panel, begin, end, y);
      }
      free(p.codes);
    } else
#endif
    for (int64_t begin = 0; begin < rows; begin += NEAR) { /* rows of x that stay in the first cache while W goes by */
      int64_t end = rows - begin < NEAR ? rows : begin + NEAR;
#pragma omp for schedule(static) nowait
      for (int64_t b = 0; b < blocks; b++)
        for (int64_t at = begin; at < end; at += TILE) {
          int64_t first = b * LANES, many = d_out - first < LANES ? d_out - first : LANES;
          int m = end - at < TILE ? (int)(end - at) : TILE;
          v8f out[TILE] = {{0}};
          eight(&w, &x, from, d_in, first, at, m, out);
          for (int i = 0; i < m; i++) memcpy(y + (at + i) * d_out + first, &out[i], many * sizeof(float));
        }
    }
  }
  free(room);
  return missing;
}
