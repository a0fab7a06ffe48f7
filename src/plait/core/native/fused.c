/* What a training step on a CPU does beside its large products: attention, forward and backward, without writing down all scores.

   One task is a key head of one row; its keys stand transposed in scratch, its queries come a block at a time, and every product is
   of blocks that stay in the second-level cache. Under a causal mask the tiles above the diagonal are left out. */
#include "vectors.h"

#ifdef __AVX512F__
enum { TALL = 6, BROAD = 4 }; /* accumulators of a tile: TALL rows of BROAD vectors; 32 registers hold 24 of them and a row of B */
#else
enum { TALL = 6, BROAD = 2 }; /* 16 registers */
#endif
enum { DEEP = 64 }; /* entries of a sum before the next tile is taken, so that their part of B stays in the first-level cache */

typedef int32_t widei __attribute__((vector_size(4 * WIDE)));
typedef enum { ALL, BELOW, UP_TO, FROM } Part;

INLINE void store_wide(float *p, wide v) { memcpy(p, &v, sizeof v); }
INLINE wide all(float a) {
#ifdef __AVX512F__
  return (wide){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
#else
  return all8(a);
#endif
}
INLINE wide chosen(widei test, wide yes, wide no) { return (wide)(((widei)yes & test) | ((widei)no & ~test)); }
INLINE wide larger(wide a, wide b) { return chosen(a < b, b, a); } /* a, where it is no number */
INLINE wide lane_numbers(void) {
  wide v;
  for (int i = 0; i < WIDE; i++) v[i] = (float)i;
  return v;
}

/* e^x for x <= 0, within 2 units in the last place: 2^n e^r as `exp8`; 0 below -87.3, NaN for NaN. */
INLINE wide exp_wide(wide x) {
#ifdef __AVX512F__
  __mmask16 kept = _mm512_cmp_ps_mask(x, all(-87.33654f), _CMP_NLT_UQ);
  wide n = _mm512_roundscale_ps(x * 1.44269504f, 0);
#else
  const float nearest = 12582912;
  widei low = x < all(-87.33654f);
  x = larger(x, all(-87.33654f));
  wide n = x * 1.44269504f + nearest - nearest;
#endif
  wide r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  wide s = all(1.0f / 5040);
  s = s * r + 1.0f / 720;
  s = s * r + 1.0f / 120;
  s = s * r + 1.0f / 24;
  s = s * r + 1.0f / 6;
  s = s * r + 0.5f;
  s = s * r * r + r + 1.0f;
#ifdef __AVX512F__
  return _mm512_maskz_scalef_ps(kept, s, n);
#else
  widei power = (__builtin_convertvector(n, widei) + 127) << 23;
  return chosen(low, all(0), s * (wide)power);
#endif
}

/* C (+)= A B for m rows of A and `broad` vectors of B's columns. A lies by rows, `by` entries apart; `turned`, by columns. */
INLINE void tile(const int m, const int broad, const int turned, int64_t k, const float *a, int64_t ay, const float *b, int64_t by, float *c,
                 int64_t cy, int add) {
  wide sum[TALL][BROAD];
  const float *from[TALL];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) {
    from[i] = a + (turned ? i : i * ay);
#pragma GCC unroll 8
    for (int j = 0; j < broad; j++) sum[i][j] = add ? load_wide(c + i * cy + j * WIDE) : all(0);
  }
  for (int64_t p = 0; p < k; p++) {
    wide row[BROAD];
#pragma GCC unroll 8
    for (int j = 0; j < broad; j++) row[j] = load_wide(b + p * by + j * WIDE);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
      wide one = all(turned ? a[p * ay + i] : from[i][p]);
#pragma GCC unroll 8
      for (int j = 0; j < broad; j++) sum[i][j] += one * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 8
    for (int j = 0; j < broad; j++) store_wide(c + i * cy + j * WIDE, sum[i][j]);
}

#define TILES(name, m, turned)                                                                                                             \
  static void name(int vectors, int64_t k, const float *a, int64_t ay, const float *b, int64_t by, float *c, int64_t cy, int add) {           \
    switch (vectors) {                                                                                                                    \
    case 1: tile(m, 1, turned, k, a, ay, b, by, c, cy, add); break;                                                                       \
    case 2: tile(m, 2, turned, k, a, ay, b, by, c, cy, add); break;                                                                       \
    case 3: tile(m, BROAD < 3 ? BROAD : 3, turned, k, a, ay, b, by, c, cy, add); break;                                                   \
    default: tile(m, BROAD, turned, k, a, ay, b, by, c, cy, add);                                                                         \
    }                                                                                                                                     \
  }
TILES(six, 6, 0) TILES(two, 2, 0) TILES(one, 1, 0) TILES(six_turned, 6, 1) TILES(two_turned, 2, 1) TILES(one_turned, 1, 1)

/* C [m, n] (+)= A [m, k] B [k, n], n in whole vectors. With queries that begin `off` keys late under a causal mask, only
   BELOW: entries (i, j) with j <= i + off;   UP_TO: terms p <= i + off;   FROM: terms p >= i - off.
   What a tile computes beyond its part must be finite (BELOW) or is multiplied by zeros (UP_TO, FROM). */
static void multiply(const Part part, const int turned, int64_t off, int64_t m, int64_t n, int64_t k, const float *a, int64_t ay,
                     const float *b, int64_t by, float *c, int64_t cy, int add) {
  for (int64_t start = 0; start < k; start += DEEP) {
    int64_t stop = start + DEEP < k ? start + DEEP : k;
    for (int64_t j = 0; j < n;) {
      int wanted = n - j >= BROAD * WIDE ? BROAD : (int)((n - j) / WIDE);
      for (int64_t i = 0, rows; i < m; i += rows) {
        rows = m - i >= TALL ? TALL : m - i > 1 ? 2 : 1;
        int64_t from = start, to = stop, last = i + rows - 1;
        int vectors = wanted;
        if (part == BELOW && j > last + off) continue;
        if (part == BELOW && last + off - j < (vectors - 1) * WIDE) vectors = (int)((last + off - j) / WIDE + 1);
        if (part == UP_TO && to > last + off + 1) to = last + off + 1;
        if (part == FROM && from < i - off) from = i - off;
        if (from >= to && (start || add)) continue;
        if (from > to) from = to;
        const float *at = turned ? a + i + from * ay : a + i * ay + from;
        (turned ? rows == TALL ? six_turned : rows == 2 ? two_turned : one_turned : rows == TALL ? six : rows == 2 ? two : one)(
            vectors, to - from, at, ay, b + from * by + j, by, c + i * cy + j, cy, add || start);
      }
      j += wanted * WIDE;
    }
  }
}

static int64_t padded(int64_t n) { return (n + WIDE - 1) / WIDE * WIDE; }

/* [rows, width] -> [width, padded rows], the columns by `by_out`, zeros after the last row. Eight by eight: interleaving the first four
   vectors with the last four, three times over, turns a block. */
static void transposed(const float *x, int64_t by, int64_t rows, int64_t width, float *out, int64_t by_out) {
  for (int64_t i = 0; i < padded(rows); i += 8)
    for (int64_t j = 0; j < width; j += 8) {
      v8f v[8], w[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) v[r] = i + r < rows ? load8(x + (i + r) * by + j) : all8(0);
#pragma GCC unroll 3
      for (int turn = 0; turn < 3; turn++) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
          w[2 * r] = SHUFFLE(v[r], v[r + 4], 0, 8, 1, 9, 2, 10, 3, 11);
          w[2 * r + 1] = SHUFFLE(v[r], v[r + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(v, w, sizeof v);
      }
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) store8(out + (j + r) * by_out + i, v[r]);
    }
}

INLINE float largest(wide v) {
  float a[WIDE];
  store_wide(a, v);
#pragma GCC unroll 4
  for (int half = WIDE / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) a[i] = a[i + half] > a[i] ? a[i + half] : a[i];
  return a[0];
}

/* Strides in floats: of a row of the batch, of a head, of an entry; channels lie side by side. */
typedef struct { int64_t row, head, entry; } Stride;
typedef struct {
  int64_t rows, heads, key_heads, queries, keys, d_head, causal, threads;
  float scale;
  Stride q, k, v, out, dout, dq, dk, dv;
} About;

enum { BLOCK = 60 }; /* queries at a time, fewer where there are so many keys that their scores would leave the cache */

static int64_t apart(int64_t n) { return padded(n) | WIDE; } /* rows of scratch, so that a column's entries fall into all sets of a cache */
static int64_t block(const About *t) {
  int64_t fit = (1 << 17) / (4 * padded(t->keys)) * 2 / TALL * TALL;
  return fit < TALL ? TALL : fit < BLOCK ? fit : BLOCK;
}

/* Floats of scratch that one thread needs. */
int64_t plait_attention_room(const About *t, int backward) {
  int64_t s = apart(t->keys);
  return (1 + backward) * s * (t->d_head + block(t));
}

static const float *at(const float *x, Stride s, int64_t row, int64_t head, int64_t entry) {
  return x + row * s.row + head * s.head + entry * s.entry;
}

static void forward(const About *t, int64_t row, int64_t group, const float *q, const float *k, const float *v, float *out, float *log_sum,
                    float *room) {
  int64_t s = apart(t->keys), w = t->d_head, fold = t->heads / t->key_heads, many = block(t);
  float *kt = room, *p = kt + s * w, rate[BLOCK];
  const float scale = t->scale;
  const float *values = at(v, t->v, row, group, 0);
  const wide lane = lane_numbers();
  transposed(at(k, t->k, row, group, 0), t->k.entry, t->keys, w, kt, s);
  for (int64_t head = group * fold; head < (group + 1) * fold; head++)
    for (int64_t first = 0; first < t->queries; first += many) {
      int64_t m = t->queries - first < many ? t->queries - first : many;
      int64_t seen = t->causal && first + m < t->keys ? first + m : t->keys, wide_seen = padded(seen);
      float *o = (float *)at(out, t->out, row, head, first), *log = log_sum + (row * t->heads + head) * t->queries + first;
      multiply(t->causal ? BELOW : ALL, 0, first, m, wide_seen, w, at(q, t->q, row, head, first), t->q.entry, kt, s, p, s, 0);
      for (int64_t i = 0; i < m; i++) {
        int64_t n = t->causal ? first + i + 1 : t->keys;
        float *x = p + i * s;
        wide most = all(-INFINITY), sum = all(0);
        for (int64_t j = 0; j < n; j += WIDE) {
          wide inside = load_wide(x + j);
          if (j + WIDE > n) store_wide(x + j, inside = chosen(lane < (float)(n - j), inside, all(-INFINITY)));
          most = larger(most, inside);
        }
        float top = largest(most);
        for (int64_t j = 0; j < n; j += WIDE) {
          wide e = exp_wide((load_wide(x + j) - top) * scale);
          store_wide(x + j, e);
          sum += e;
        }
        for (int64_t j = padded(n); j < wide_seen; j += WIDE) store_wide(x + j, all(0));
        float total = across_wide(sum);
        log[i] = top * scale + logf(total);
        rate[i] = 1 / total;
      }
      multiply(t->causal ? UP_TO : ALL, 0, first, m, w, seen, p, s, values, t->v.entry, o, t->out.entry, 0);
      for (int64_t i = 0; i < m; i++)
        for (int64_t c = 0; c < w; c += WIDE) store_wide(o + i * t->out.entry + c, load_wide(o + i * t->out.entry + c) * rate[i]);
    }
}

static void backward(const About *t, int64_t row, int64_t group, const float *q, const float *k, const float *v, const float *out,
                     const float *log_sum, const float *dout, float *dq, float *dk, float *dv, float *room) {
  int64_t s = apart(t->keys), w = t->d_head, fold = t->heads / t->key_heads, many = block(t);
  float *kt = room, *vt = kt + s * w, *p = vt + s * w, *dp = p + s * many;
  const float scale = t->scale;
  const float *keys = at(k, t->k, row, group, 0), *values = at(v, t->v, row, group, 0);
  float *to_keys = (float *)at(dk, t->dk, row, group, 0), *to_values = (float *)at(dv, t->dv, row, group, 0);
  const wide lane = lane_numbers();
  transposed(keys, t->k.entry, t->keys, w, kt, s);
  transposed(values, t->v.entry, t->keys, w, vt, s);
  for (int64_t j = 0; j < t->keys; j++)
    for (int64_t c = 0; c < w; c += WIDE) {
      store_wide(to_keys + j * t->dk.entry + c, all(0));
      store_wide(to_values + j * t->dv.entry + c, all(0));
    }
  for (int64_t head = group * fold; head < (group + 1) * fold; head++)
    for (int64_t first = 0; first < t->queries; first += many) {
      int64_t m = t->queries - first < many ? t->queries - first : many;
      int64_t seen = t->causal && first + m < t->keys ? first + m : t->keys, wide_seen = padded(seen);
      const float *asked = at(q, t->q, row, head, first), *up = at(dout, t->dout, row, head, first), *o = at(out, t->out, row, head, first);
      const float *log = log_sum + (row * t->heads + head) * t->queries + first;
      Part below = t->causal ? BELOW : ALL, up_to = t->causal ? UP_TO : ALL, from = t->causal ? FROM : ALL;
      multiply(below, 0, first, m, wide_seen, w, asked, t->q.entry, kt, s, p, s, 0);
      multiply(below, 0, first, m, wide_seen, w, up, t->dout.entry, vt, s, dp, s, 0);
      for (int64_t i = 0; i < m; i++) {
        int64_t n = t->causal ? first + i + 1 : t->keys;
        float *x = p + i * s, *y = dp + i * s;
        wide sum = all(0);
        for (int64_t c = 0; c < w; c += WIDE) sum += load_wide(up + i * t->dout.entry + c) * load_wide(o + i * t->out.entry + c);
        const float along = across_wide(sum), less = log[i];
        for (int64_t j = 0; j < n; j += WIDE) {
          wide e = exp_wide(load_wide(x + j) * scale - less), d = e * (load_wide(y + j) - along) * scale;
          if (j + WIDE > n) e = chosen(lane < (float)(n - j), e, all(0)), d = chosen(lane < (float)(n - j), d, all(0));
          store_wide(x + j, e);
          store_wide(y + j, d);
        }
        for (int64_t j = padded(n); j < wide_seen; j += WIDE) store_wide(x + j, all(0)), store_wide(y + j, all(0));
      }
      multiply(up_to, 0, first, m, w, seen, dp, s, keys, t->k.entry, (float *)at(dq, t->dq, row, head, first), t->dq.entry, 0);
      multiply(from, 1, first, seen, w, m, dp, s, asked, t->q.entry, to_keys, t->dk.entry, 1);
      multiply(from, 1, first, seen, w, m, p, s, up, t->dout.entry, to_values, t->dv.entry, 1);
    }
}

/* softmax(q kᵀ scale) v, and the logarithm of each query's sum [B, H, L]. `room`: `plait_attention_room` floats a thread. */
void plait_attention(const About *t, const float *q, const float *k, const float *v, float *out, float *log_sum, float *room, int64_t each) {
  (void)each;
#pragma omp parallel for num_threads(t->threads) schedule(static)
  for (int64_t thread = 0; thread < t->threads; thread++)
    for (int64_t task = thread; task < t->rows * t->key_heads; task += t->threads)
      forward(t, task / t->key_heads, task % t->key_heads, q, k, v, out, log_sum, room + thread * each);
}

void plait_attention_backward(const About *t, const float *q, const float *k, const float *v, const float *out, const float *log_sum,
                              const float *dout, float *dq, float *dk, float *dv, float *room, int64_t each) {
#pragma omp parallel for num_threads(t->threads) schedule(static)
  for (int64_t thread = 0; thread < t->threads; thread++)
    for (int64_t task = thread; task < t->rows * t->key_heads; task += t->threads)
      backward(t, task / t->key_heads, task % t->key_heads, q, k, v, out, log_sum, dout, dq, dk, dv, room + thread * each);
}

INLINE wide sigmoid_wide(wide x) { /* from e^-|x|, which does not overflow */
  widei negative = x < all(0);
  wide e = exp_wide(chosen(negative, x, -x));
  return chosen(negative, e, all(1)) / (1.0f + e);
}

/* The part of the normal distribution below -|x| is e^(-x²/2) times a smooth function, here a polynomial in 1 / (1 + 0.3 |x|), fitted at
   Chebyshev's points with relative weights: within 7e-8 of itself before rounding, for |x| up to 14. */
INLINE wide tail(wide u) {
  wide s = all(0.0388709203f);
  s = s * u - 0.171443554f;
  s = s * u + 0.233107471f;
  s = s * u - 0.0812823035f;
  s = s * u + 0.145609826f;
  s = s * u + 0.0934725847f;
  s = s * u + 0.122204592f;
  s = s * u + 0.119451402f;
  return s * u + 9.09630845e-06f;
}

/* The activation of x; *slope gets its derivative. */
INLINE wide activated_wide(const int kind, wide x, wide *slope) {
  wide half, p;
  switch (kind) {
  case RELU2: {
    wide cut = larger(x, all(0));
    *slope = 2.0f * cut;
    return cut * cut;
  }
  case GELU: {
    widei negative = x < all(0);
    wide density = exp_wide(x * x * -0.5f), below = density * tail(1.0f / (1.0f + 0.3f * chosen(negative, -x, x)));
    below = chosen(negative, below, 1.0f - below);
    *slope = below + x * density * 0.39894228f;
    return x * below;
  }
  case GELU_TANH: /* (1 + tanh u) / 2 is the sigmoid of 2 u */
    p = sigmoid_wide(1.59576912f * (x + 0.044715f * x * x * x));
    half = 1.59576912f * (1.0f + 0.134145f * x * x);
    break;
  case QUICK_GELU: p = sigmoid_wide(1.702f * x), half = all(1.702f); break;
  default: p = sigmoid_wide(x), half = all(1); /* SILU */
  }
  *slope = p + x * p * (1.0f - p) * half;
  return x * p;
}

INLINE void row_activated(const int kind, int64_t width, const float *bias, float *x, float *y) {
  int64_t j = 0;
  wide slope;
  for (; j + WIDE <= width; j += WIDE) {
    wide in = load_wide(x + j);
    store_wide(y + j, activated_wide(kind, bias ? in + load_wide(bias + j) : in, &slope));
    store_wide(x + j, slope);
  }
  if (j < width) {
    wide in = all(0), add = all(0), out;
    memcpy(&in, x + j, (width - j) * sizeof(float));
    if (bias) memcpy(&add, bias + j, (width - j) * sizeof(float));
    out = activated_wide(kind, in + add, &slope);
    memcpy(x + j, &slope, (width - j) * sizeof(float));
    memcpy(y + j, &out, (width - j) * sizeof(float));
  }
}

/* y = the activation of x + bias; x becomes the derivative there. */
void plait_activate(int kind, int64_t rows, int64_t width, const float *bias, float *x, float *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; i++) {
    switch (kind) {
    case RELU2: row_activated(RELU2, width, bias, x + i * width, y + i * width); break;
    case GELU: row_activated(GELU, width, bias, x + i * width, y + i * width); break;
    case GELU_TANH: row_activated(GELU_TANH, width, bias, x + i * width, y + i * width); break;
    case QUICK_GELU: row_activated(QUICK_GELU, width, bias, x + i * width, y + i * width); break;
    default: row_activated(SILU, width, bias, x + i * width, y + i * width);
    }
  }
}

/* grad *= slope; sums [threads, width] gets the columns' sums of each thread's rows. */
void plait_activate_backward(int64_t rows, int64_t width, const float *slope, float *grad, float *sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t thread = 0; thread < threads; thread++) {
    float *sum = sums + thread * width;
    memset(sum, 0, width * sizeof(float));
    for (int64_t i = rows * thread / threads; i < rows * (thread + 1) / threads; i++)
      for (int64_t j = 0; j < width; j++) sum[j] += grad[i * width + j] *= slope[i * width + j];
  }
}
