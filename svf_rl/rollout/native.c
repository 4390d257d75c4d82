/* The token loop of native.py: a Llama-shaped decoder in float32 on the processor. See there for what it is and how it is called.

   Every worker thread runs `work` on rows of its own and waits for nobody: it takes the next prompts, runs them, and then one
   token of every living row at a time, until all are written. All its tokens of a moment, of prompts and of answers, go through
   the layers together, BLOCK at a time, so that what is between two matrices stays in the processor's cache.

   Weights [out, in] come in panels: [out / PANEL][in][PANEL], which a tile of TILE tokens reads once from start to end. Keys of a
   head lie in blocks of LANES tokens, [slots / LANES][head][LANES], values [slots][head]. A row sees the keys of its prompt, which
   rows of one prompt share, and then its own. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, TILE = 12 };
#elif defined(__AVX__)
enum { LANES = 8, TILE = 6 };
#else
enum { LANES = 4, TILE = 6 };
#endif
enum { PANEL = 2 * LANES, BLOCK = 96, SCORES = 64 };
#define EMPTY 1e-36f /* the mass of what cannot be drawn is less: exp(-87) */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int64_t num;
#define AT(pointer) (*(vec *)(pointer))
#define INLINE static inline __attribute__((always_inline))

/* y (+)= w x, then y += up (scale of the token's kind * (down x)): either may be missing. at: the first column of y. */
typedef struct { const float *w, *down, *up, *scale, *bias; num in, out, rank, at; } Linear;
typedef struct { Linear in[3], o, up[2], down; const float *before, *between, *q_norm, *k_norm; } Layer;
typedef struct {
    const Layer *layer; const float *embed, *norm, *cos, *sin; Linear head;
    num layers, width, heads, kv, size, inner, vocabulary, turned, ranks;
    float epsilon, scale;
} Model;

/* Jobs are prompts; the answers to job j are first_answer[j] .. first_answer[j + 1], its tokens ids[first_id[j] ..]. */
typedef struct {
    const Model *model;
    num jobs, longest, most, stops;
    const num *first_id, *first_answer, *kind, *ids, *stop, *limit;
    const float *uniform;
    float temperature;
    num *token, *count, *ended;
    float *logprob;
    num next_job, places, cancelled;
} Task;

/* waiting: answers without a row, from the answer `next`.  alive: answers that have not ended. */
typedef struct { num job, length, next, waiting, alive; float *memory, *scores; } Prompt;
typedef struct { Prompt *prompt; num answer; float *memory; } Row;
typedef struct { num id, position, kind; Prompt *prompt; Row *row; int last; } Token;

typedef struct {
    Task *task; const Model *m;
    Row *row; Prompt *prompt; Token *token;
    num rows, prompts;
    float *x, *n, *qkv, *heads, *up, *rank, *attention, *scores;
} Worker;

INLINE float total(vec v) { float s = 0; for (int i = 0; i < LANES; i++) s += v[i]; return s; }
INLINE float largest(vec v) { float s = v[0]; for (int i = 1; i < LANES; i++) s = v[i] > s ? v[i] : s; return s; }
INLINE vec choose(ivec first, vec a, vec b) { return (vec)(((ivec)a & first) | ((ivec)b & ~first)); }
INLINE vec max_of(vec a, vec b) { return choose(a > b, a, b); }
INLINE num max(num a, num b) { return a > b ? a : b; }
INLINE num up_to(num n, num step) { return (n + step - 1) / step * step; }

/* exp(x), x between -87 and 87, to a unit in the last place or two: 2^n e^r with |r| <= log(2) / 2, e^r as in Cephes' expf. */
INLINE vec exp_of(vec x) {
    const float magic = 12582912.f; /* added to a small number, leaves its integer in the last bits */
    x = max_of(-max_of(-x, (vec){} - 87.f), (vec){} - 87.f);
    vec n = x * 1.44269504f + magic;
    ivec bits = (ivec)n << 23;
    n -= magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = (((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f;
    p = (p * r + 5.0000001201e-1f) * (r * r) + r + 1.f;
    return (vec)((ivec)p + bits);
}

/* One tile: `count` tokens, `stride` apart, times one panel; y [count, columns], rows `wide` apart, = or += x w. It also fetches
   `share` numbers for each of `in` from `next`. */
INLINE void tile(int count, const float *x, num stride, num in, const float *w, const float *next, num share, const float *bias,
                 float *y, num wide, int columns, int add) {
    vec sum[TILE][2];
    for (int i = 0; i < count; i++) for (int v = 0; v < 2; v++) sum[i][v] = bias ? AT(bias + v * LANES) : (vec){};
    for (num k = 0; k < in; k++, w += PANEL) {
        vec a = AT(w), b = AT(w + LANES);
        __builtin_prefetch(next + k * share);
#pragma GCC unroll 12
        for (int i = 0; i < count; i++) { sum[i][0] += a * x[i * stride + k]; sum[i][1] += b * x[i * stride + k]; }
    }
    for (int i = 0; i < count; i++, y += wide) {
        if (columns == PANEL) for (int v = 0; v < 2; v++) AT(y + v * LANES) = sum[i][v] + (add ? AT(y + v * LANES) : (vec){});
        else for (int c = 0; c < columns; c++) y[c] = (add ? y[c] : 0) + sum[i][c / LANES][c % LANES];
    }
}

#define CASE(c) case c: tile(c, x, stride, in, w, next, share, bias, y, wide, columns, add); break;
static void tile_of(num count, const float *x, num stride, num in, const float *w, const float *next, num share, const float *bias,
                    float *y, num wide, int columns, int add) {
    switch (count) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

/* y [tokens, out] = or += x [tokens, in] w + bias. Tiles are of sizes as equal as can be, for one of two tokens takes as long as
   one of five; each fetches its share of the next panel. */
static void product(num tokens, const float *x, num stride, num in, const float *w, const float *bias, float *y, num wide, num out,
                    int add) {
    num tiles = (tokens + TILE - 1) / TILE, share = (PANEL + tiles - 1) / max(1, tiles);
    for (num c = 0; c < out; c += PANEL, w += PANEL * in)
        for (num i = 0, t = 0, count; t < tiles; i += count, t++) {
            count = (tokens - i) / (tiles - t);
            tile_of(count, x + i * stride, stride, in, w, w + (PANEL + t * share) * in, share, bias ? bias + c : 0,
                    y + i * wide + c, wide, out - c < PANEL ? out - c : PANEL, add);
        }
}

static void linear(const Worker *o, const Linear *l, const Token *token, num tokens, const float *x, num stride, float *y, num wide,
                   int add) {
    y += l->at;
    if (l->w) product(tokens, x, stride, l->in, l->w, l->bias, y, wide, l->out, add);
    if (!l->down) return;
    product(tokens, x, stride, l->in, l->down, 0, o->rank, l->rank, l->rank, 0);
    for (num i = 0; i < tokens; i++)
        for (num r = 0; r < l->rank; r++) o->rank[i * l->rank + r] *= l->scale[token[i].kind * l->rank + r];
    product(tokens, o->rank, l->rank, l->rank, l->up, l->w ? 0 : l->bias, y, wide, l->out, add || l->w);
}

/* y = x weight / root mean square of x; y may be x. */
INLINE void normed(const float *x, const float *weight, num width, float epsilon, float *y) {
    vec sum = {};
    for (num i = 0; i < width; i += LANES) sum += AT(x + i) * AT(x + i);
    float factor = 1 / sqrtf(total(sum) / width + epsilon);
    for (num i = 0; i < width; i += LANES) AT(y + i) = AT(x + i) * factor * AT(weight + i);
}

static void norm(const Model *m, num tokens, const float *x, const float *weight, float *y) {
    for (num i = 0; i < tokens; i++) normed(x + i * m->width, weight, m->width, m->epsilon, y + i * m->width);
}

/* The two halves of what turns in a head, against each other. */
INLINE void turn(float *restrict x, const float *cos, const float *sin, num half) {
    for (num i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

INLINE num slots_of(const Task *t, int own) { return up_to(own ? t->most : t->longest, LANES); }
INLINE float *keys_of(const Worker *o, float *memory, int own, num layer, num head) {
    return memory + (layer * o->m->kv + head) * 2 * slots_of(o->task, own) * o->m->size;
}

/* Norms and positions of queries and keys; keys and values go into the memory of the prompt, or of the row. */
static void remember(const Worker *o, const Layer *l, num layer, const Token *t, float *qkv) {
    const Model *m = o->m;
    const float *cos = m->cos + t->position * m->turned / 2, *sin = m->sin + t->position * m->turned / 2;
    for (num h = 0; h < m->heads + m->kv; h++) {
        const float *weight = h < m->heads ? l->q_norm : l->k_norm;
        if (weight) normed(qkv + h * m->size, weight, m->size, m->epsilon, qkv + h * m->size);
        turn(qkv + h * m->size, cos, sin, m->turned / 2);
    }
    num slot = t->position - (t->row ? t->prompt->length : 0);
    for (num h = 0; h < m->kv; h++) {
        float *keys = keys_of(o, t->row ? t->row->memory : t->prompt->memory, t->row != 0, layer, h);
        float *values = keys + slots_of(o->task, t->row != 0) * m->size;
        const float *key = qkv + (m->heads + h) * m->size, *value = key + m->kv * m->size;
        float *block = keys + slot / LANES * LANES * m->size + slot % LANES;
        for (num d = 0; d < m->size; d++) block[d * LANES] = key[d];
        memcpy(values + slot * m->size, value, m->size * sizeof(float));
    }
}

/* Scores of `seen` keys, those of empty slots in the last block -1e30; returns how many there are with them. What lies `half`
   behind a head's keys are its values, and half behind those the next head's keys: either is fetched while the other is used. */
INLINE num score(const float *query, const float *keys, num half, num seen, num size, float scale, float *scores) {
    num blocks = (seen + LANES - 1) / LANES;
    for (num b = 0; b < blocks; b++) {
        const float *k = keys + b * LANES * size;
        for (num i = 0; i < LANES * size; i += 16) __builtin_prefetch(k + half + i);
        vec s0 = {}, s1 = {}, s2 = {}, s3 = {};
        for (num d = 0; d < size; d += 4) {
            s0 += AT(k + d * LANES) * query[d];
            s1 += AT(k + (d + 1) * LANES) * query[d + 1];
            s2 += AT(k + (d + 2) * LANES) * query[d + 2];
            s3 += AT(k + (d + 3) * LANES) * query[d + 3];
        }
        AT(scores + b * LANES) = ((s0 + s1) + (s2 + s3)) * scale;
    }
    for (num i = seen; i < blocks * LANES; i++) scores[i] = -1e30f;
    return blocks * LANES;
}

/* y += weights times values, n vectors of a head. */
INLINE void gather_some(int n, const float *weights, const float *values, num half, num seen, num size, float *y) {
    vec even[4] = {}, odd[4] = {};
    num i = 0;
    for (; i + 1 < seen; i += 2) {
        for (num p = 0; p < 2 * n * LANES; p += 16) __builtin_prefetch(values + half + i * size + p);
        for (int v = 0; v < n; v++) {
            even[v] += AT(values + i * size + v * LANES) * weights[i];
            odd[v] += AT(values + (i + 1) * size + v * LANES) * weights[i + 1];
        }
    }
    for (; i < seen; i++) for (int v = 0; v < n; v++) even[v] += AT(values + i * size + v * LANES) * weights[i];
    for (int v = 0; v < n; v++) AT(y + v * LANES) += even[v] + odd[v];
}

INLINE void gather(const float *weights, const float *values, num half, num seen, num size, float *y) {
    num d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) gather_some(4, weights, values + d, half, seen, size, y + d);
    for (; d < size; d += LANES) gather_some(1, weights, values + d, half, seen, size, y + d);
}

/* s [n] becomes softmax(s). */
INLINE void softmax(float *s, num n) {
    vec tops = AT(s), sum = {};
    for (num i = LANES; i < n; i += LANES) tops = max_of(tops, AT(s + i));
    float top = largest(tops);
    for (num i = 0; i < n; i += LANES) sum += AT(s + i) = exp_of(AT(s + i) - top);
    float factor = 1 / total(sum);
    for (num i = 0; i < n; i += LANES) AT(s + i) *= factor;
}

/* What one token reads from those before it, all heads: its prompt's, then, if it is of a row, the row's own. */
static void attend(const Worker *o, num layer, const Token *t, const float *qkv, float *heads) {
    const Model *m = o->m;
    num own = t->row ? t->position - t->prompt->length + 1 : 0, shared = t->row ? t->prompt->length : t->position + 1;
    num size = m->size, half = slots_of(o->task, 0) * size, own_half = slots_of(o->task, 1) * size;
    float *s = o->attention;
    memset(heads, 0, m->heads * size * sizeof(float));
    for (num h = 0; h < m->heads; h++, qkv += size, heads += size) {
        num group = h / (m->heads / m->kv);
        const float *keys = keys_of(o, t->prompt->memory, 0, layer, group), *mine = 0;
        num first = score(qkv, keys, half, shared, size, m->scale, s), n = first;
        if (own) n += score(qkv, mine = keys_of(o, t->row->memory, 1, layer, group), own_half, own, size, m->scale, s + first);
        softmax(s, n);
        gather(s, keys + half, half, shared, size, heads);
        if (own) gather(s + first, mine + own_half, own_half, own, size, heads);
    }
}

/* up = silu(gate) * up, in place of the gate. */
INLINE void activate(float *gate, const float *up, num inner) {
    for (num i = 0; i < inner; i += LANES) {
        vec g = AT(gate + i);
        AT(gate + i) = g / (exp_of(-g) + 1.f) * AT(up + i);
    }
}

static void feed_forward(const Worker *o, const Layer *l, const Token *token, num tokens) {
    const Model *m = o->m;
    num wide = 2 * m->inner + PANEL; /* rows a power of two apart would share one place in the processor's cache */
    norm(m, tokens, o->x, l->between, o->n);
    for (int i = 0; i < 2 && l->up[i].out; i++) linear(o, &l->up[i], token, tokens, o->n, m->width, o->up, wide, 0);
    for (num i = 0; i < tokens; i++) activate(o->up + i * wide, o->up + i * wide + m->inner, m->inner);
    linear(o, &l->down, token, tokens, o->up, wide, o->x, m->width, 1);
}

/* Only the last tokens of prompts and rows go on after the last layer's attention. Returns how many there are. */
static num only_last(const Worker *o, Token *token, num tokens) {
    num kept = 0, wide = o->m->heads * o->m->size, width = o->m->width;
    for (num i = 0; i < tokens; i++)
        if (token[i].last) {
            memmove(o->x + kept * width, o->x + i * width, width * sizeof(float));
            memmove(o->heads + kept * wide, o->heads + i * wide, wide * sizeof(float));
            token[kept++] = token[i];
        }
    return kept;
}

/* At most BLOCK tokens through all layers: scores [kept, vocabulary] of the last ones, which move to the front of `token`. */
static num forward(const Worker *o, Token *token, num tokens) {
    const Model *m = o->m;
    num wide = (m->heads + 2 * m->kv) * m->size, all = m->heads * m->size;
    for (num i = 0; i < tokens; i++) memcpy(o->x + i * m->width, m->embed + token[i].id * m->width, m->width * sizeof(float));
    for (num layer = 0; layer < m->layers; layer++) {
        const Layer *l = m->layer + layer;
        norm(m, tokens, o->x, l->before, o->n);
        for (int i = 0; i < 3 && l->in[i].out; i++) linear(o, &l->in[i], token, tokens, o->n, m->width, o->qkv, wide, 0);
        for (num i = 0; i < tokens; i++) remember(o, l, layer, token + i, o->qkv + i * wide);
        for (num i = 0; i < tokens; i++)
            if (layer + 1 < m->layers || token[i].last) attend(o, layer, token + i, o->qkv + i * wide, o->heads + i * all);
        if (layer + 1 == m->layers) tokens = only_last(o, token, tokens);
        linear(o, &l->o, token, tokens, o->heads, all, o->x, m->width, 1);
        feed_forward(o, l, token, tokens);
    }
    norm(m, tokens, o->x, m->norm, o->n);
    linear(o, &m->head, token, tokens, o->n, m->width, o->scores, up_to(m->vocabulary, SCORES), 0);
    return tokens;
}

/* The first token whose cumulative mass exceeds uniform * total, or the best one; mass [vocabulary and more] is written over. */
static num draw(float *scores, num vocabulary, float temperature, float uniform, float *mass, float *logprob) {
    num n = up_to(vocabulary, LANES), chosen = 0;
    for (num i = vocabulary; i < n; i++) scores[i] = -1e30f;
    vec tops = AT(scores);
    for (num i = LANES; i < n; i += LANES) tops = max_of(tops, AT(scores + i));
    float top = largest(tops), by = temperature > 0 ? 1 / temperature : 1;
    double all = 0, before = 0;
    for (num i = 0; i < n; i += LANES) all += total(AT(mass + i) = exp_of((AT(scores + i) - top) * by));
    if (temperature > 0) {
        double wanted = fmin(uniform, 1 - 0x1p-23) * all;
        num i = 0;
        for (float sum; i + LANES < n && before + (sum = total(AT(mass + i))) <= wanted; i += LANES) before += sum;
        for (; i < vocabulary && before <= wanted; before += mass[i++])
            if (mass[i] > EMPTY) chosen = i; /* by rounding all may not be enough: then it is the last that has mass */
    } else while (chosen + 1 < vocabulary && scores[chosen] != top) chosen++;
    *logprob = (scores[chosen] - top) * by - log(all);
    return chosen;
}

/* Write down the next token of a row; at its end the row is free, and with its last row the prompt. */
static void record(Worker *o, Row *row, float *scores) {
    Task *t = o->task;
    num a = row->answer, at = a * t->most + t->count[a];
    num token = draw(scores, o->m->vocabulary, t->temperature, t->uniform[at], o->attention, t->logprob + at);
    t->token[at] = token;
    int over = ++t->count[a] == t->limit[a];
    for (num i = 0; i < t->stops; i++) over |= token == t->stop[i];
    if (!over) return;
    row->prompt->alive--;
    row->prompt = 0;
    __atomic_store_n(t->ended + __atomic_fetch_add(&t->places, 1, __ATOMIC_RELAXED), a, __ATOMIC_RELEASE);
}

/* Run tokens, in blocks of sizes as equal as can be, and do with the scores what they are for: draw a row's next token, or keep
   them for the rows of a prompt. */
static void run(Worker *o, num tokens) {
    num wide = up_to(o->m->vocabulary, SCORES);
    for (num i = 0, blocks = (tokens + BLOCK - 1) / BLOCK, count; blocks; i += count, blocks--) {
        count = (tokens - i) / blocks;
        Token *token = o->token + i;
        num kept = forward(o, token, count);
        for (num k = 0; k < kept; k++) {
            float *scores = o->scores + k * wide;
            if (token[k].row) record(o, token[k].row, scores);
            else memcpy(token[k].prompt->scores, scores, wide * sizeof(float));
        }
    }
}

/* Free rows take the answers of prompts that are waiting for them. Returns how many rows stay free. */
static num start_rows(Worker *o) {
    num free = 0, p = 0;
    for (num r = 0; r < o->rows; r++) {
        Row *row = o->row + r;
        while (!row->prompt) {
            while (p < o->prompts && !o->prompt[p].waiting) p++;
            if (p == o->prompts) { free++; break; }
            row->prompt = o->prompt + p;
            row->answer = row->prompt->next++;
            row->prompt->waiting--;
            record(o, row, row->prompt->scores);
        }
    }
    return free;
}

/* Take the next jobs for so many free rows, about a BLOCK of tokens, and run their prompts. Returns how many were taken. */
static num start_prompts(Worker *o, num free) {
    Task *t = o->task;
    num tokens = 0, taken = 0, p = 0;
    while (free > 0 && tokens < BLOCK) {
        while (o->prompt[p].alive) p++;
        num job = __atomic_fetch_add(&t->next_job, 1, __ATOMIC_RELAXED);
        if (job >= t->jobs) break;
        Prompt *prompt = o->prompt + p;
        prompt->job = job, prompt->length = t->first_id[job + 1] - t->first_id[job];
        prompt->next = t->first_answer[job], prompt->waiting = prompt->alive = t->first_answer[job + 1] - prompt->next;
        for (num i = 0; i < prompt->length; i++)
            o->token[tokens++] = (Token){t->ids[t->first_id[job] + i], i, t->kind[job], prompt, 0, i + 1 == prompt->length};
        free -= prompt->alive, taken++;
    }
    run(o, tokens);
    return taken;
}

/* One more token of every living row. Returns how many there are. */
static num step(Worker *o) {
    Task *t = o->task;
    num tokens = 0;
    for (num r = 0; r < o->rows; r++) {
        Row *row = o->row + r;
        if (!row->prompt) continue;
        num n = t->count[row->answer], id = t->token[row->answer * t->most + n - 1];
        o->token[tokens++] = (Token){id, row->prompt->length + n - 1, t->kind[row->prompt->job], row->prompt, row, 1};
    }
    run(o, tokens);
    return tokens;
}

/* The next piece of the memory that a worker is given; without memory, only how much there must be is counted. */
typedef struct { char *memory; num used; } Space;
static void *piece(Space *s, num bytes) {
    void *found = s->memory ? s->memory + s->used : 0;
    s->used += up_to(bytes, 64);
    return found;
}

static float *floats(Space *s, num n) { return piece(s, n * sizeof(float)); }

static Worker worker(Task *t, num rows, Space *s) {
    const Model *m = t->model;
    num wide = up_to(m->vocabulary, SCORES), slot = 2 * m->layers * m->kv * m->size, prompts = rows + 1;
    Worker o = {t, m, piece(s, rows * sizeof(Row)), piece(s, prompts * sizeof(Prompt)),
                piece(s, (BLOCK + max(rows, t->longest)) * sizeof(Token)), rows, prompts,
                floats(s, BLOCK * m->width), floats(s, BLOCK * m->width), floats(s, BLOCK * (m->heads + 2 * m->kv) * m->size),
                floats(s, BLOCK * m->heads * m->size), floats(s, BLOCK * (2 * m->inner + PANEL)), floats(s, BLOCK * m->ranks),
                floats(s, max(wide, t->longest + t->most + 2 * LANES)), floats(s, BLOCK * wide)};
    for (num i = 0; i < prompts; i++) {
        Prompt prompt = {.memory = floats(s, slots_of(t, 0) * slot), .scores = floats(s, wide)};
        Row row = {.memory = i < rows ? floats(s, slots_of(t, 1) * slot) : 0};
        if (s->memory) o.prompt[i] = prompt;
        if (s->memory && i < rows) o.row[i] = row;
    }
    return o;
}

/* How many bytes `work` needs. */
num needed(Task *t, num rows) {
    Space s = {0, 0};
    worker(t, rows, &s);
    return s.used;
}

/* What a worker thread does, with so many rows: until no prompt is left. */
void work(Task *t, num rows, char *memory) {
    Space s = {memory, 0};
    Worker o = worker(t, rows, &s);
    while (!__atomic_load_n(&t->cancelled, __ATOMIC_RELAXED)) {
        num free = start_rows(&o);
        if (free >= max(1, rows / 8) && start_prompts(&o, free)) continue;
        if (!step(&o)) return;
    }
}

/* Weights [out, in] as panels [out / PANEL][in][PANEL], zeros beyond the last. */
void pack(const float *w, num out, num in, float *panel) {
    for (num first = 0; first < out; first += PANEL, panel += PANEL * in)
        for (num k = 0; k < in; k += LANES) /* a square at a time: it is read by rows and written by columns */
            for (num c = 0; c < PANEL; c++)
                for (num i = k; i < in && i < k + LANES; i++) panel[i * PANEL + c] = first + c < out ? w[(first + c) * in + i] : 0;
}

num lanes(void) { return LANES; }

/* How many answers are written down in `ended`, `seen` of which are known: a place is given out before it is filled. */
num ended(Task *t, num seen) {
    while (seen < t->first_answer[t->jobs] && __atomic_load_n(t->ended + seen, __ATOMIC_ACQUIRE) >= 0) seen++;
    return seen;
}
