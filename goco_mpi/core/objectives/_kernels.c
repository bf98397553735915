/* Loss and gradient of linear models on weighted rows, in one pass: every row comes from memory once.
 *
 * Rows are taken a few at a time: their outputs, their residuals, and their part of the gradient, while they are in
 * the innermost cache. Features are float64 or float32; parameters, products and sums are float64. The equations and
 * the reference are in goco_mpi.core.objectives; docs/adr/0023 says why this exists.
 *
 * Lengths are checked at every call; where a CSR matrix points, by check_csr, once when its rows are made.
 * The order of all additions depends on the shape alone, so that the same input gives the same bits.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum kind { LEAST_SQUARES, LOGISTIC, SOFTMAX };

/* 1 / exp(this) is as good as 0, and exp(this) is finite. */
static const double LARGEST_EXPONENT = 700.0;

/* Rows of so many bytes are taken together: with the parameters and the gradient they leave room in 32 KiB. */
enum { TILE_BYTES = 1 << 14 };

/* Overwrite the outputs of n rows by their weighted residuals; return their weighted loss, or 0 if it is not wanted. */
static double residuals(enum kind kind, double *z, const double *targets, const double *weights, Py_ssize_t n,
                        Py_ssize_t n_classes, int with_loss)
{
    double loss = 0.0;
    if (kind == LEAST_SQUARES) {
        for (Py_ssize_t i = 0; i < n; i++) {
            const double residual = z[i] - targets[i];
            loss += 0.5 * weights[i] * residual * residual;
            z[i] = weights[i] * residual;
        }
    } else if (kind == LOGISTIC) {
        for (Py_ssize_t i = 0; i < n; i++) {
            const double margin = targets[i] * z[i];
            if (with_loss)
                loss += weights[i] * (margin < 0.0 ? log1p(exp(margin)) - margin : log1p(exp(-margin)));
            const double odds = exp(margin > LARGEST_EXPONENT ? LARGEST_EXPONENT : margin); /* a NaN stays one */
            z[i] = -targets[i] * weights[i] / (1.0 + odds);
        }
    } else {
        for (Py_ssize_t i = 0; i < n; i++, z += n_classes) {
            double largest = z[0], sum = 0.0;
            for (Py_ssize_t k = 1; k < n_classes; k++)
                if (!(z[k] <= largest)) /* a NaN becomes the largest */
                    largest = z[k];
            const double label = targets[i];
            const Py_ssize_t class = label >= 0.0 && label < (double)n_classes ? (Py_ssize_t)label : -1;
            const int known = class >= 0 && (double)class == label;
            const double chosen = known ? z[class] - largest : 0.0;
            for (Py_ssize_t k = 0; k < n_classes; k++)
                sum += z[k] = exp(z[k] - largest);
            if (with_loss)
                loss += weights[i] * (log(sum) - chosen);
            for (Py_ssize_t k = 0; k < n_classes; k++)
                z[k] *= weights[i] / sum;
            if (known)
                z[class] -= weights[i];
        }
    }
    return with_loss ? loss : 0.0;
}

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)

/* Dense rows: for both precisions, and for what the processor may have. Vectors of 8 are GCC's and Clang's. */
typedef double vector __attribute__((vector_size(64), aligned(8), may_alias));
typedef float narrow __attribute__((vector_size(32), aligned(4), may_alias));

#if defined(__x86_64__)
#define PROCESSORS 3
#else
#define PROCESSORS 1
#endif

#define FEATURE double
#define LOAD(p) (*(const vector *)(p))
#define PROCESSOR
#define DENSE dense_double_any
#include "_kernels_dense.h"
#if PROCESSORS > 1
#define PROCESSOR __attribute__((target("avx2,fma")))
#define DENSE dense_double_avx2
#include "_kernels_dense.h"
#define PROCESSOR __attribute__((target("avx512f")))
#define DENSE dense_double_avx512
#include "_kernels_dense.h"
#endif
#undef FEATURE
#undef LOAD
#define FEATURE float
#define LOAD(p) __builtin_convertvector(*(const narrow *)(p), vector)
#define PROCESSOR
#define DENSE dense_float_any
#include "_kernels_dense.h"
#if PROCESSORS > 1
#define PROCESSOR __attribute__((target("avx2,fma")))
#define DENSE dense_float_avx2
#include "_kernels_dense.h"
#define PROCESSOR __attribute__((target("avx512f")))
#define DENSE dense_float_avx512
#include "_kernels_dense.h"
#endif
#undef FEATURE
#undef LOAD

#define FEATURE double
#define INDEX int32_t
#define VALUE(e) (double)values[e]
#define ONES 0
#define CSR csr_double_32
#include "_kernels_csr.h"
#define FEATURE double
#define INDEX int64_t
#define VALUE(e) (double)values[e]
#define ONES 0
#define CSR csr_double_64
#include "_kernels_csr.h"
#define FEATURE float
#define INDEX int32_t
#define VALUE(e) (double)values[e]
#define ONES 0
#define CSR csr_float_32
#include "_kernels_csr.h"
#define FEATURE float
#define INDEX int64_t
#define VALUE(e) (double)values[e]
#define ONES 0
#define CSR csr_float_64
#include "_kernels_csr.h"
#define FEATURE double
#define INDEX int32_t
#define VALUE(e) 1.0
#define ONES 1
#define CSR csr_ones_32
#include "_kernels_csr.h"
#define FEATURE double
#define INDEX int64_t
#define VALUE(e) 1.0
#define ONES 1
#define CSR csr_ones_64
#include "_kernels_csr.h"

typedef double dense_function(enum kind, const void *, Py_ssize_t, Py_ssize_t, const double *, const double *,
                              const double *, double *, int);

static dense_function *dense_double = dense_double_any, *dense_float = dense_float_any;
static const char *processor = "any";

static void choose(void)
{
#if PROCESSORS > 1
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        dense_double = dense_double_avx512, dense_float = dense_float_avx512, processor = "AVX-512";
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        dense_double = dense_double_avx2, dense_float = dense_float_avx2, processor = "AVX2";
    }
#endif
}

/* Call a function for dense rows with short params and out on lines of the cache; numpy's arrays begin anywhere. */
static double aligned(dense_function *function, enum kind kind, const void *features, Py_ssize_t n_rows,
                      Py_ssize_t n_columns, const double *targets, const double *weights, const double *params,
                      double *out, int with_loss)
{
    enum { MOST_COLUMNS = 2048, LINE = 64 };
    if (n_columns > MOST_COLUMNS)
        return function(kind, features, n_rows, n_columns, targets, weights, params, out, with_loss);
    double room[2 * (MOST_COLUMNS + LINE / 8)];
    double *w = (double *)(((uintptr_t)room + LINE - 1) & ~(uintptr_t)(LINE - 1)), *g = w + (n_columns + 7) / 8 * 8;
    memcpy(w, params, (size_t)n_columns * sizeof *w);
    if (out != NULL)
        memcpy(g, out, (size_t)n_columns * sizeof *g);
    const double loss = function(kind, features, n_rows, n_columns, targets, weights, w, out ? g : NULL, with_loss);
    if (out != NULL)
        memcpy(out, g, (size_t)n_columns * sizeof *g);
    return loss;
}

/* What the arguments hold, and whether it is what is needed: 'd' float64, 'f' float32, 'i' either length of index. */
static char type_of(const Py_buffer *view)
{
    const char *format = view->format;
    if (format == NULL || format[0] == '\0' || format[1] != '\0')
        return '?';
    switch (format[0]) {
    case 'd': case 'f':
        return format[0];
    case 'i': case 'l': case 'q':
        return view->itemsize == 4 ? 'i' : view->itemsize == 8 ? 'l' : '?';
    default:
        return '?';
    }
}

static int get(PyObject *object, Py_buffer *view, const char *types, int n_dimensions, int writable)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0)
        return -1;
    const char type = type_of(view);
    int fits = view->ndim == n_dimensions;
    if (fits)
        for (fits = 0; *types && !fits; types++)
            fits = *types == type;
    if (!fits) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_TypeError, "an array has the wrong type or number of dimensions");
        return -1;
    }
    return 0;
}

static Py_ssize_t length(const Py_buffer *view)
{
    return view->shape[0];
}

enum { MOST_BUFFERS = 7 };

struct buffers {
    Py_buffer views[MOST_BUFFERS];
    int n;
};

static Py_buffer *take(struct buffers *buffers, PyObject *object, const char *types, int n_dimensions, int writable)
{
    Py_buffer *view = &buffers->views[buffers->n];
    if (get(object, view, types, n_dimensions, writable) < 0)
        return NULL;
    buffers->n++;
    return view;
}

static PyObject *give_back(struct buffers *buffers, PyObject *result)
{
    while (buffers->n)
        PyBuffer_Release(&buffers->views[--buffers->n]);
    return result;
}

static PyObject *refuse(struct buffers *buffers, const char *why)
{
    PyErr_SetString(PyExc_ValueError, why);
    return give_back(buffers, NULL);
}

static PyObject *dense(PyObject *module, PyObject *args)
{
    PyObject *features, *targets, *weights, *params, *out;
    int kind, with_loss;
    if (!PyArg_ParseTuple(args, "iOOOOOp", &kind, &features, &targets, &weights, &params, &out, &with_loss))
        return NULL;
    struct buffers buffers = {.n = 0};
    Py_buffer *x, *b, *c, *w, *g = NULL;
    if (!(x = take(&buffers, features, "df", 2, 0)) || !(b = take(&buffers, targets, "d", 1, 0)) ||
        !(c = take(&buffers, weights, "d", 1, 0)) || !(w = take(&buffers, params, "d", 1, 0)) ||
        (out != Py_None && !(g = take(&buffers, out, "d", 1, 1))))
        return give_back(&buffers, NULL);
    const Py_ssize_t n_rows = x->shape[0], n_columns = x->shape[1];
    if (kind != LEAST_SQUARES && kind != LOGISTIC)
        return refuse(&buffers, "there is no kernel of that kind for dense rows");
    if (length(b) != n_rows || length(c) != n_rows || length(w) != n_columns || (g && length(g) != n_columns))
        return refuse(&buffers, "lengths of arrays do not fit");
    dense_function *function = type_of(x) == 'd' ? dense_double : dense_float;
    double loss;
    Py_BEGIN_ALLOW_THREADS
    loss = aligned(function, (enum kind)kind, x->buf, n_rows, n_columns, b->buf, c->buf, w->buf, g ? g->buf : NULL,
                   with_loss);
    Py_END_ALLOW_THREADS
    return give_back(&buffers, PyFloat_FromDouble(loss));
}

static PyObject *csr(PyObject *module, PyObject *args)
{
    PyObject *data, *indices, *indptr, *targets, *weights, *params, *out;
    Py_ssize_t start, stop, n_columns;
    int kind, ones, with_loss;
    if (!PyArg_ParseTuple(args, "iOOOpnnnOOOOp", &kind, &data, &indices, &indptr, &ones, &start, &stop, &n_columns,
                          &targets, &weights, &params, &out, &with_loss))
        return NULL;
    struct buffers buffers = {.n = 0};
    Py_buffer *x, *j, *p, *b, *c, *w, *g = NULL;
    if (!(x = take(&buffers, data, "df", 1, 0)) || !(j = take(&buffers, indices, "il", 1, 0)) ||
        !(p = take(&buffers, indptr, "il", 1, 0)) || !(b = take(&buffers, targets, "d", 1, 0)) ||
        !(c = take(&buffers, weights, "d", 1, 0)) || !(w = take(&buffers, params, "d", 1, 0)) ||
        (out != Py_None && !(g = take(&buffers, out, "d", 1, 1))))
        return give_back(&buffers, NULL);
    const Py_ssize_t n_rows = length(p) - 1;
    if (kind != LEAST_SQUARES && kind != LOGISTIC && kind != SOFTMAX)
        return refuse(&buffers, "there is no kernel of that kind");
    if (start < 0 || stop < start || stop > n_rows || length(b) != n_rows || length(c) != n_rows || n_columns < 1 ||
        length(w) < n_columns || length(w) % n_columns || (kind != SOFTMAX && length(w) != n_columns) ||
        (g && length(g) != length(w)) || length(j) != length(x) || j->itemsize != p->itemsize)
        return refuse(&buffers, "lengths of arrays do not fit");
    const Py_ssize_t n_outputs = length(w) / n_columns;
    double loss = 0.0;
    int failed;
    Py_BEGIN_ALLOW_THREADS
#define CALL(function) \
    function((enum kind)kind, x->buf, j->buf, p->buf, start, stop, n_outputs, b->buf, c->buf, w->buf, \
             g ? g->buf : NULL, with_loss, &loss)
    if (j->itemsize == 4)
        failed = ones ? CALL(csr_ones_32) : type_of(x) == 'd' ? CALL(csr_double_32) : CALL(csr_float_32);
    else
        failed = ones ? CALL(csr_ones_64) : type_of(x) == 'd' ? CALL(csr_double_64) : CALL(csr_float_64);
    Py_END_ALLOW_THREADS
    if (failed) {
        give_back(&buffers, NULL);
        return PyErr_NoMemory();
    }
    return give_back(&buffers, PyFloat_FromDouble(loss));
}

static int64_t number(const Py_buffer *view, Py_ssize_t i)
{
    return view->itemsize == 4 ? ((const int32_t *)view->buf)[i] : ((const int64_t *)view->buf)[i];
}

static PyObject *check_csr(PyObject *module, PyObject *args)
{
    PyObject *data, *indices, *indptr;
    Py_ssize_t n_columns;
    if (!PyArg_ParseTuple(args, "OOOn", &data, &indices, &indptr, &n_columns))
        return NULL;
    struct buffers buffers = {.n = 0};
    Py_buffer *x, *j, *p;
    if (!(x = take(&buffers, data, "df", 1, 0)) || !(j = take(&buffers, indices, "il", 1, 0)) || !(p = take(&buffers, indptr, "il", 1, 0)))
        return give_back(&buffers, NULL);
    if (j->itemsize != p->itemsize || length(p) < 1 || length(x) != length(j))
        return refuse(&buffers, "indices and indptr do not fit");
    const Py_ssize_t n_rows = length(p) - 1, n_values = length(j);
    int within = number(p, 0) >= 0 && number(p, n_rows) <= n_values;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < n_rows; i++)
        within &= number(p, i) <= number(p, i + 1);
    for (Py_ssize_t e = 0; e < n_values; e++)
        within &= number(j, e) >= 0 && number(j, e) < n_columns;
    Py_END_ALLOW_THREADS
    if (!within)
        return refuse(&buffers, "a CSR matrix has a column number, or a row's place, outside itself");
    int ones = 1;
    for (Py_ssize_t e = 0; ones && e < n_values; e++)
        ones = type_of(x) == 'd' ? ((const double *)x->buf)[e] == 1.0 : ((const float *)x->buf)[e] == 1.0f;
    return give_back(&buffers, PyBool_FromLong(ones));
}

static PyMethodDef methods[] = {
    {"dense", dense, METH_VARARGS, "Add the gradient of dense rows' weighted losses to out; return their loss."},
    {"csr", csr, METH_VARARGS, "Add the gradient of CSR rows' weighted losses to out; return their loss."},
    {"check_csr", check_csr, METH_VARARGS, "Return whether all values are 1; raise ValueError if a CSR matrix points outside itself."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    choose();
    return PyModule_AddStringConstant(module, "PROCESSOR", processor);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_doc = "Gradients in one pass, compiled.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&definition);
}
