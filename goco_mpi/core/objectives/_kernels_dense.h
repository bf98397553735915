/* Dense rows, for one precision FEATURE with LOAD and one PROCESSOR: the function named DENSE.
 *
 * out and params may be copies that begin with a line of the cache: a store across two of them costs several.
 */

PROCESSOR static double DENSE(enum kind kind, const void *features, Py_ssize_t n_rows, Py_ssize_t n_columns,
                              const double *targets, const double *weights, const double *params, double *out,
                              int with_loss)
{
    enum { MOST_ROWS = 64, LINE = 64, AHEAD = 4096 };
    double z[MOST_ROWS], loss = 0.0;
    const FEATURE *x = features;
    const Py_ssize_t row_bytes = n_columns * (Py_ssize_t)sizeof(FEATURE), whole = n_columns - n_columns % 8;
    Py_ssize_t tile = TILE_BYTES / (row_bytes ? row_bytes : 1);
    tile = tile > MOST_ROWS ? MOST_ROWS : tile < 4 ? 4 : tile - tile % 4;
    if (row_bytes > 1 << 16)
        tile = 1; /* four of them would not stay in the cache */
    /* Long rows one after the other, as the processor likes to read; of short ones four share the final sums. */
    const Py_ssize_t together = row_bytes < 1 << 10 ? 4 : 1;
    /* How much the gradient's pass of four rows asks for: a line for every 8 columns. */
    const uintptr_t asked = (uintptr_t)whole * (LINE / 8), ahead = AHEAD + (asked < 1 << 13 ? asked : 0);
    for (Py_ssize_t start = 0; start < n_rows; start += tile, x += tile * n_columns) {
        const Py_ssize_t n = n_rows - start < tile ? n_rows - start : tile;
        Py_ssize_t i = 0;
        for (; together == 4 && i + 4 <= n; i += 4) {
            const FEATURE *x0 = x + i * n_columns, *x1 = x0 + n_columns, *x2 = x1 + n_columns, *x3 = x2 + n_columns;
            vector s0 = {0.0}, s1 = {0.0}, s2 = {0.0}, s3 = {0.0};
            double r0 = 0.0, r1 = 0.0, r2 = 0.0, r3 = 0.0;
            Py_ssize_t k = 0;
            for (; k < whole; k += 8) {
                const vector w = *(const vector *)(params + k);
                __builtin_prefetch((const void *)((uintptr_t)x0 + ahead + 4 * (uintptr_t)k * sizeof(FEATURE)));
                __builtin_prefetch((const void *)((uintptr_t)x0 + ahead + 4 * (uintptr_t)k * sizeof(FEATURE) + LINE));
                s0 += LOAD(x0 + k) * w;
                s1 += LOAD(x1 + k) * w;
                s2 += LOAD(x2 + k) * w;
                s3 += LOAD(x3 + k) * w;
            }
            for (; k < n_columns; k++) {
                r0 += (double)x0[k] * params[k];
                r1 += (double)x1[k] * params[k];
                r2 += (double)x2[k] * params[k];
                r3 += (double)x3[k] * params[k];
            }
            for (k = 0; k < 8; k++)
                r0 += s0[k], r1 += s1[k], r2 += s2[k], r3 += s3[k];
            z[i] = r0, z[i + 1] = r1, z[i + 2] = r2, z[i + 3] = r3;
        }
        for (; i < n; i++) {
            const FEATURE *x0 = x + i * n_columns;
            const uintptr_t next = (uintptr_t)x0 + ahead;
            vector s0 = {0.0}, s1 = {0.0}, s2 = {0.0}, s3 = {0.0};
            double sum = 0.0;
            Py_ssize_t k = 0;
            for (; k + 32 <= n_columns; k += 32) {
                const vector *w = (const vector *)(params + k);
                for (uintptr_t line = 0; line < 32 * sizeof(FEATURE); line += LINE)
                    __builtin_prefetch((const void *)(next + (uintptr_t)k * sizeof(FEATURE) + line));
                s0 += LOAD(x0 + k) * w[0];
                s1 += LOAD(x0 + k + 8) * w[1];
                s2 += LOAD(x0 + k + 16) * w[2];
                s3 += LOAD(x0 + k + 24) * w[3];
            }
            for (; k < whole; k += 8)
                s0 += LOAD(x0 + k) * *(const vector *)(params + k);
            for (; k < n_columns; k++)
                sum += (double)x0[k] * params[k];
            s0 = (s0 + s1) + (s2 + s3);
            for (k = 0; k < 8; k++)
                sum += s0[k];
            z[i] = sum;
        }
        loss += residuals(kind, z, targets + start, weights + start, n, 1, with_loss);
        if (out == NULL)
            continue;
        for (i = 0; i + 4 <= n; i += 4) {
            const FEATURE *x0 = x + i * n_columns, *x1 = x0 + n_columns, *x2 = x1 + n_columns, *x3 = x2 + n_columns;
            const double r0 = z[i], r1 = z[i + 1], r2 = z[i + 2], r3 = z[i + 3];
            /* Memory is not to rest meanwhile: on from where the outputs' pass has asked for it. */
            const uintptr_t next = (uintptr_t)(x + n * n_columns) + ahead + (uintptr_t)(i / 4) * asked;
            Py_ssize_t k = 0;
            for (; k < whole; k += 8) {
                vector *g = (vector *)(out + k);
                __builtin_prefetch((const void *)(next + (uintptr_t)k * (LINE / 8)));
                *g += (r0 * LOAD(x0 + k) + r1 * LOAD(x1 + k)) + (r2 * LOAD(x2 + k) + r3 * LOAD(x3 + k));
            }
            for (; k < n_columns; k++)
                out[k] += (r0 * (double)x0[k] + r1 * (double)x1[k]) + (r2 * (double)x2[k] + r3 * (double)x3[k]);
        }
        for (; i < n; i++) {
            const FEATURE *x0 = x + i * n_columns;
            const double r0 = z[i];
            Py_ssize_t k = 0;
            for (; k < whole; k += 8)
                *(vector *)(out + k) += r0 * LOAD(x0 + k);
            for (; k < n_columns; k++)
                out[k] += r0 * (double)x0[k];
        }
    }
    return loss;
}

#undef DENSE
#undef PROCESSOR
