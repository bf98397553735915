/* CSR rows that have been checked, for one precision FEATURE and one length of INDEX: the function named CSR.
 * VALUE is a stored value; where all are 1, they are not looked at, which is most of what would be read.
 *
 * The sums and the scattering go by fours and end in a switch: a loop whose last turn cannot be predicted costs as much
 * as the work of a short row.
 */

static inline double JOIN(CSR, output)(const FEATURE *restrict values, const INDEX *restrict columns, Py_ssize_t n,
                                       const double *restrict params)
{
    double even = 0.0, odd = 0.0;
    Py_ssize_t e = 0;
    for (; e + 4 <= n; e += 4) {
        even += VALUE(e) * params[columns[e]];
        odd += VALUE(e + 1) * params[columns[e + 1]];
        even += VALUE(e + 2) * params[columns[e + 2]];
        odd += VALUE(e + 3) * params[columns[e + 3]];
    }
    switch (n - e) {
    case 3:
        even += VALUE(e + 2) * params[columns[e + 2]]; /* fall through */
    case 2:
        odd += VALUE(e + 1) * params[columns[e + 1]]; /* fall through */
    case 1:
        even += VALUE(e) * params[columns[e]];
    }
    return even + odd;
}

static inline void JOIN(CSR, scatter)(const FEATURE *restrict values, const INDEX *restrict columns, Py_ssize_t n,
                                      double residual, double *restrict out)
{
    Py_ssize_t e = 0;
    for (; e + 4 <= n; e += 4) {
        out[columns[e]] += VALUE(e) * residual;
        out[columns[e + 1]] += VALUE(e + 1) * residual;
        out[columns[e + 2]] += VALUE(e + 2) * residual;
        out[columns[e + 3]] += VALUE(e + 3) * residual;
    }
    switch (n - e) {
    case 3:
        out[columns[e + 2]] += VALUE(e + 2) * residual; /* fall through */
    case 2:
        out[columns[e + 1]] += VALUE(e + 1) * residual; /* fall through */
    case 1:
        out[columns[e]] += VALUE(e) * residual;
    }
}

/* Returns 0, or -1 without memory. */
static int CSR(enum kind kind, const void *data, const void *columns, const void *pointers, Py_ssize_t start,
               Py_ssize_t stop, Py_ssize_t n_outputs, const double *targets, const double *weights,
               const double *params, double *out, int with_loss, double *loss)
{
    enum { MOST_ROWS = 256, MOST_CLASS_ROWS = 16, LINE = 64 };
    const FEATURE *values = data;
    const INDEX *indices = columns, *indptr = pointers;
    double few[MOST_ROWS], *z = few;
    /* As many rows as the innermost cache holds, if they are alike. */
    const Py_ssize_t value_bytes = (Py_ssize_t)((ONES ? 0 : sizeof(FEATURE)) + sizeof(INDEX));
    const Py_ssize_t n_bytes = (Py_ssize_t)(indptr[stop] - indptr[start]) * value_bytes;
    const Py_ssize_t row_bytes = n_bytes / (stop > start ? stop - start : 1) + 1;
    Py_ssize_t tile = n_outputs > 1 ? MOST_CLASS_ROWS : MOST_ROWS;
    if (tile > TILE_BYTES / row_bytes)
        tile = row_bytes < TILE_BYTES ? TILE_BYTES / row_bytes : 1;
    if (tile * n_outputs > MOST_ROWS && (z = malloc((size_t)(tile * n_outputs) * sizeof(double))) == NULL)
        return -1;
    for (Py_ssize_t at = start; at < stop; at += tile) {
        const Py_ssize_t n = stop - at < tile ? stop - at : tile;
        const INDEX *ends = indptr + at;
        for (Py_ssize_t i = 0; i < n; i++) {
            const INDEX first = ends[i], last = ends[i + 1];
            if (n_outputs == 1) {
                z[i] = JOIN(CSR, output)(values + first, indices + first, last - first, params);
                continue;
            }
            double *restrict row = z + i * n_outputs;
            for (Py_ssize_t k = 0; k < n_outputs; k++)
                row[k] = 0.0;
            for (INDEX e = first; e < last; e++) {
                const double value = VALUE(e), *restrict w = params + (Py_ssize_t)indices[e] * n_outputs;
                for (Py_ssize_t k = 0; k < n_outputs; k++)
                    row[k] += value * w[k];
            }
        }
        *loss += residuals(kind, z, targets + at, weights + at, n, n_outputs, with_loss);
        if (out == NULL)
            continue;
        for (Py_ssize_t i = 0; i < n; i++) {
            const INDEX first = ends[i], last = ends[i + 1];
            /* Memory is not to rest meanwhile: as much of the next rows. */
            const INDEX ahead = ends[n] - ends[0];
            const uintptr_t v = (uintptr_t)(values + first) + (uintptr_t)ahead * sizeof(FEATURE);
            const uintptr_t c = (uintptr_t)(indices + first) + (uintptr_t)ahead * sizeof(INDEX);
            if (!ONES) {
                __builtin_prefetch((const void *)v);
                __builtin_prefetch((const void *)(v + LINE));
            }
            __builtin_prefetch((const void *)c);
            for (uintptr_t b = 2 * LINE; !ONES && b < (uintptr_t)(last - first) * sizeof(FEATURE); b += LINE)
                __builtin_prefetch((const void *)(v + b));
            for (uintptr_t b = LINE; b < (uintptr_t)(last - first) * sizeof(INDEX); b += LINE)
                __builtin_prefetch((const void *)(c + b));
            if (n_outputs == 1) {
                JOIN(CSR, scatter)(values + first, indices + first, last - first, z[i], out);
                continue;
            }
            const double *restrict row = z + i * n_outputs;
            for (INDEX e = first; e < last; e++) {
                const double value = VALUE(e);
                double *restrict g = out + (Py_ssize_t)indices[e] * n_outputs;
                for (Py_ssize_t k = 0; k < n_outputs; k++)
                    g[k] += value * row[k];
            }
        }
    }
    if (z != few)
        free(z);
    return 0;
}

#undef FEATURE
#undef INDEX
#undef CSR
#undef VALUE
#undef ONES
