/* A tower's blocks as one program: a list of operations over buffers of float32 rows, run by threads that meet only where one needs what
   another made. core/program.py writes the list from the module tree; nothing here knows a model. */
#include <time.h>
#include "attention.h"
#include "matrix.h"

enum { BUFFERS = 32 }; /* as in core/program.py */
enum { NORM, PREPARE, ADD, PLACE, MULTIPLY, ATTEND }; /* kinds of operations, as in core/program.py */

/* `from`, `to`, `other`: buffers by number, -1 none. Every row of a buffer is counted up to whole vectors of eight. */
typedef struct {
  int64_t kind, wait; /* wait: all threads meet before it */
  int64_t from, to, other;
  int64_t d_in, d_out;
  int64_t bits;       /* MULTIPLY: 32, or those of codes; PREPARE: 1 where x is rounded */
  int64_t activation; /* MULTIPLY: of the product, or of `other`, which the product is multiplied by */
  int64_t add;        /* MULTIPLY: onto what `to` has already */
  int64_t heads, kv_heads, d_rotary, interleaved;
  int64_t attention, sight, turn; /* which of the pass's `Keys`, `Sight` and `Turn`; -1 none */
  int64_t root_mean;  /* NORM: RMS, not layer normalisation */
  double eps, scale;  /* NORM; ATTEND */
  double offset;      /* NORM: of the gain */
  const void *weight, *bias, *scales, *least; /* float32 (bias, gains, a matrix of 32 bits), else as `plait_product` has them */
} Op;

typedef struct { int64_t by_row, by_entry; const float *cos, *sin; } Turn; /* [B or 1, L, d_rotary / 2] */

typedef struct {
  int64_t rows, entries, d_model;  /* B, L, D */
  int64_t buffers, widest, slots;  /* widest: of what is prepared; slots: the most of any attention */
  int64_t threads;
  const float *from;               /* [B, L, D] */
  float *to;
  float *arena;
  const int64_t *widths;           /* of the buffers */
  double *spent;                   /* NULL, or seconds of each operation */
} Pass;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* ---- operations on rows ---- */

static void normalise(const Op *op, const float *x, float *y) {
  int64_t d = op->d_in;
  const float *gain = op->weight, *bias = op->bias;
  for (int64_t h = 0; h < op->heads; h++, x += d, y += d) {
    v8f sum = {0};
    float mean = 0, rest = 0;
    int64_t k = 0;
    if (!op->root_mean) {
      for (; k + LANES <= d; k += LANES) sum += load8(x + k);
      for (; k < d; k++) rest += x[k];
      mean = (across(sum) + rest) / d;
    }
    v8f square = {0};
    for (rest = 0, k = 0; k + LANES <= d; k += LANES) {
      v8f v = load8(x + k) - mean;
      square += v * v;
    }
    for (; k < d; k++) rest += (x[k] - mean) * (x[k] - mean);
    float rate = 1.0f / sqrtf((across(square) + rest) / d + (float)op->eps), offset = (float)op->offset;
    for (k = 0; k + LANES <= d; k += LANES) {
      v8f v = (load8(x + k) - mean) * rate;
      if (gain) v *= load8(gain + k) + offset;
      if (bias) v += load8(bias + k);
      store8(y + k, v);
    }
    for (; k < d; k++) {
      float v = (x[k] - mean) * rate;
      if (gain) v *= gain[k] + offset;
      y[k] = bias ? v + bias[k] : v;
    }
  }
}

static void turn(const Op *op, float *x, int64_t heads, const float *cos, const float *sin) {
  int64_t d = op->d_in, half = op->d_rotary / 2, step = op->interleaved ? 2 : 1, other = op->interleaved ? 1 : half;
  for (int64_t h = 0; h < heads; h++, x += d)
    for (int64_t i = 0; i < half; i++) {
      float *a = x + i * step, *b = a + other, before = *a;
      *a = before * cos[i] - *b * sin[i];
      *b = *b * cos[i] + before * sin[i];
    }
}

/* Turns the queries and keys of a row, and puts its keys and values where all are. */
static void place(const Op *op, const Keys *at, int64_t start, const Turn *by, int64_t b, int64_t l, float *q, float *k, const float *v) {
  if (by) {
    const float *cos = by->cos + b * by->by_row + l * by->by_entry, *sin = by->sin + b * by->by_row + l * by->by_entry;
    turn(op, q, op->heads, cos, sin);
    turn(op, k, op->kv_heads, cos, sin);
  }
  if (start < 0) return;
  for (int64_t g = 0; g < op->kv_heads; g++) {
    int64_t to = b * at->by_source + g * at->by_head + (start + l) * at->by_slot;
    memcpy(at->keys + to, k + g * op->d_in, op->d_in * sizeof(float));
    memcpy(at->values + to, v + g * op->d_in, op->d_in * sizeof(float));
  }
}

/* ---- the program ---- */

/* Eight outputs of a row: activation, addition, and away. */
INLINE void finish(const Op *op, int64_t first, v8f y, float *to, const float *other) {
  if (other) y *= activated((int)op->activation, load8(other + first));
  else if (op->activation) y = activated((int)op->activation, y);
  if (op->add) y = load8(to + first) + y;
  store8(to + first, y);
}

static void multiply(const Op *op, const Rows *x, const float *from, int64_t from_stride, float *to, const float *other, int64_t rows) {
  Matrix w = {op->weight, op->scales, op->least, op->bias, op->d_in, op->d_out, op->bits};
  int64_t blocks = up(op->d_out) / LANES, stride = up(op->d_out);
  for (int64_t begin = 0; begin < rows; begin += NEAR) {
    int64_t end = rows - begin < NEAR ? rows : begin + NEAR;
#pragma omp for schedule(static) nowait
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t at = begin; at < end; at += TILE) {
        int m = end - at < TILE ? (int)(end - at) : TILE;
        v8f out[TILE] = {{0}};
        eight(&w, x, from, from_stride, b * LANES, at, m, out);
        for (int i = 0; i < m; i++) finish(op, b * LANES, out[i], to + (at + i) * stride, other ? other + (at + i) * stride : NULL);
      }
  }
}

/* The floats that `arena` must have. */
int64_t plait_room(const Pass *pass) {
  int64_t rows = pass->rows * pass->entries, groups = (pass->widest + GROUP - 1) / GROUP, floats = 0;
  for (int64_t i = 0; i < pass->buffers; i++) floats += rows * up(pass->widths[i]);
  return floats + rows * groups * (GROUP + GROUP / 4 + 3) + pass->threads * 2 * up(pass->slots) + 64;
}

void plait_run(const Pass *pass, const Op *ops, int64_t n, const Keys *attentions, const Sight *sights, const Turn *turns) {
  int64_t L = pass->entries, rows = pass->rows * L, D = pass->d_model, room = rows * ((pass->widest + GROUP - 1) / GROUP);
  float *buffer[BUFFERS], *next = pass->arena;
  for (int64_t i = 0; i < pass->buffers; i++) {
    buffer[i] = next;
    next += rows * up(pass->widths[i]);
  }
  Rows prepared = {.exact = next, .scale = next + room * GROUP, .sum = next + room * (GROUP + 1)};
  prepared.total = (int32_t *)(next + room * (GROUP + 2));
  int8_t *bytes = (int8_t *)(next + room * (GROUP + 3));
  float *scores = next + room * (GROUP + 3 + GROUP / 4);
  int64_t apart = up(pass->slots), thread = 0;
#pragma omp parallel num_threads((int)pass->threads)
  {
    Rows x = prepared;
    float *p = NULL;
    int32_t *seen = NULL;
    double begun = 0;
#pragma omp critical
    {
      p = scores + 2 * apart * thread++;
      seen = (int32_t *)(p + apart);
    }
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; row++) memcpy(buffer[0] + row * up(D), pass->from + row * D, D * sizeof(float));
    for (int64_t i = 0; i < n; i++) {
      const Op *op = ops + i;
      if (op->wait) {
#pragma omp barrier
      }
      if (pass->spent) {
#pragma omp master
        {
          double at = now();
          if (i) pass->spent[i - 1] += at - begun;
          begun = at;
        }
      }
      float *from = op->from < 0 ? NULL : buffer[op->from], *to = op->to < 0 ? NULL : buffer[op->to];
      float *other = op->other < 0 ? NULL : buffer[op->other];
      int64_t from_stride = op->from < 0 ? 0 : up(pass->widths[op->from]), to_stride = op->to < 0 ? 0 : up(pass->widths[op->to]);
      if (op->kind == NORM) {
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++) normalise(op, from + row * from_stride, to + row * to_stride);
      } else if (op->kind == ADD) {
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++)
          for (int64_t k = 0; k < to_stride; k += LANES)
            store8(to + row * to_stride + k, load8(to + row * to_stride + k) + load8(from + row * to_stride + k));
      } else if (op->kind == PREPARE) {
        x.groups = (op->d_in + GROUP - 1) / GROUP;
        x.rounded = op->bits ? bytes : NULL;
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++) prepare(&x, row, from + row * from_stride, op->d_in);
      } else if (op->kind == PLACE) {
        const Keys *keys = attentions + op->attention;
        const Turn *by = op->turn < 0 ? NULL : turns + op->turn;
        int64_t k_stride = to_stride, v_stride = to_stride; /* keys in `to`, values in `other` */
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++)
          place(op, keys, sights[op->sight].start, by, row / L, row % L, from + row * from_stride, to + row * k_stride, other + row * v_stride);
      } else if (op->kind == MULTIPLY) {
        multiply(op, &x, from, from_stride, to, other, rows);
      } else if (op->kind == ATTEND) {
        const Keys *keys = attentions + op->attention;
        const Sight *sight = sights + op->sight;
        int64_t fold = sight->fold, each = fold * L; /* the queries of a source, one head at a time: its keys stay in the cache */
#pragma omp for schedule(static) nowait
        for (int64_t task = 0; task < pass->rows / fold * op->heads; task++) {
          int64_t source = task / op->heads, h = task % op->heads;
          for (int64_t i = 0; i < each; i++) {
            int64_t row = source * each + i, place = h * op->d_in;
            Query of = {source, h, h / (op->heads / op->kv_heads), i % L, L - 1 - i % L, op->d_in, (float)op->scale};
            attend(keys, sight, &of, from + row * from_stride + place, to + row * to_stride + place, p, seen);
          }
        }
      }
    }
#pragma omp barrier
    if (pass->spent) {
#pragma omp master
      pass->spent[n - 1] += now() - begun;
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) memcpy(pass->to + row * D, buffer[0] + row * up(D), D * sizeof(float));
  }
}
