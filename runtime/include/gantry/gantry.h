/* gantry.h: the C interface of Gantry, a training runtime for GANs. C99; it includes no C++ and no device header.
 * True of every function unless its comment says otherwise:
 *   errors     a gantry_status; outputs come last and are written only on GANTRY_OK; gantry_last_error() says why.
 *              Getters that cannot fail return their value, and 0 or NULL for a NULL handle or an index outside.
 *              No function aborts, exits, prints or installs a signal handler.
 *   units      sizes are bytes, counts are elements; data is little-endian.
 *   shapes     row-major, outermost dimension first; dimension 0 is the batch; images are N, C, H, W.
 *   threads    different handles may be used at once, one handle by one thread at a time. Objects made with a context
 *              count as different handles.
 *   ownership  *_create, *_open and *_load make a handle and *_destroy frees it; *_destroy(NULL) does nothing. Arguments
 *              are copied where the call returns. Text and pointers that a getter returns belong to the handle, and stay
 *              valid until the next call that changes it, or for text until the next call that returns text from it.
 *   structs    begin with struct_size: start from the INIT macro, then set what you need. A caller built with an older
 *              header keeps working (fields it lacks have their default); one built with a newer header works as long as
 *              what this library does not know is zero, else the call fails with GANTRY_VERSION_MISMATCH. */
#ifndef GANTRY_GANTRY_H_
#define GANTRY_GANTRY_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GANTRY_API
#else
#define GANTRY_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---------------------------------------------------------------------------------------------------- */

/* Values never change; new ones are appended to their group. The groups tell what is still usable. */
typedef enum gantry_status {
  GANTRY_OK = 0,
  /* 1-19, the call: nothing changed, every handle works on. */
  GANTRY_INVALID_ARGUMENT = 1,    /* an argument is wrong; the message says which, and what would be right */
  GANTRY_NOT_FOUND = 2,           /* no file, tensor, scalar or run of that name; the message lists or names near ones */
  GANTRY_FAILED_PRECONDITION = 3, /* right call, wrong moment, e.g. a step before the plan */
  GANTRY_UNSUPPORTED = 4,         /* an operator, mode or device that this build does not have */
  GANTRY_VERSION_MISMATCH = 5,    /* a struct has fields that this library does not know: install a newer library */
  GANTRY_BAD_DATA = 6,            /* a file is damaged, or not what it is used for */
  /* 20-39, the machine: nothing changed, every handle works on; the same call may succeed later. */
  GANTRY_OUT_OF_MEMORY = 20,      /* memory or the context's budget is short; a smaller request may succeed */
  GANTRY_PERMISSION_DENIED = 21,  /* the system refuses access to a file */
  GANTRY_NO_SPACE = 22,           /* the disk is full; a file that existed is as it was */
  GANTRY_IO_ERROR = 23,           /* reading or writing failed; a file that existed is as it was */
  GANTRY_CANNOT_CREATE = 24,      /* an output file or folder cannot be made */
  GANTRY_TIMED_OUT = 25,          /* what was waited for goes on; call again */
  /* 40-59, the training: the session can be read, saved and destroyed, and stepped again only after a resume. */
  GANTRY_NOT_FINITE = 40,         /* a loss became NaN or infinite; the message names the step and what held it first */
  GANTRY_PEER_LOST = 41,          /* a rank of the job is gone, the message names it: the others cannot go on without it */
  /* 60-: only *_destroy is of use for the handle. */
  GANTRY_INTERNAL = 60            /* a bug in Gantry; please report it with the message */
} gantry_status;

/* Why the last call of this thread that failed did so: one or more lines, never NULL, "" before any failure. Valid until
 * this thread's next failing call. A successful call leaves it as it is. */
GANTRY_API const char* gantry_last_error(void);
/* "GANTRY_NOT_FOUND" and so on; "unknown status" for another number. Valid for ever. */
GANTRY_API const char* gantry_status_name(gantry_status status);

/* ---- version and build ----------------------------------------------------------------------------------------- */

#define GANTRY_VERSION_MAJOR 0
#define GANTRY_VERSION_MINOR 1
#define GANTRY_VERSION_PATCH 0
/* Counts incompatible changes of this interface; it is the N of libgantry.so.N. */
#define GANTRY_ABI_VERSION 1

/* "0.1.0", of the library that runs. Valid for ever, like all text of this group. */
GANTRY_API const char* gantry_version(void);
/* GANTRY_ABI_VERSION as the library was built: refuse to go on where it differs from the header's. */
GANTRY_API int32_t gantry_abi_version(void);
/* The backends of this build and what they found on this machine, one a line: "cpu: oneDNN 2.6.3, AVX2, 2 cores". */
GANTRY_API const char* gantry_backends(void);
/* Compiler, build type and libraries, one a line, for bug reports. */
GANTRY_API const char* gantry_build_info(void);

/* ---- element types --------------------------------------------------------------------------------------------- */

typedef enum gantry_dtype {
  GANTRY_F32 = 1, /* networks compute in f32 or f64 */
  GANTRY_F64 = 2,
  GANTRY_I32 = 3, /* indices */
  GANTRY_I64 = 4,
  GANTRY_U8 = 5,
  GANTRY_BOOL = 6, /* from here on: only in arrays */
  GANTRY_I8 = 7,
  GANTRY_U16 = 8,
  GANTRY_I16 = 9,
  GANTRY_U32 = 10,
  GANTRY_U64 = 11,
  GANTRY_F16 = 12,
  GANTRY_BF16 = 13,
  GANTRY_F8_E4M3 = 14,
  GANTRY_F8_E5M2 = 15
} gantry_dtype;

/* "f32", "bf16", ...; NULL for another number. Valid for ever. */
GANTRY_API const char* gantry_dtype_name(int32_t dtype);
/* Bytes of one element; 0 for another number. */
GANTRY_API size_t gantry_dtype_size(int32_t dtype);

/* ---- operators ------------------------------------------------------------------------------------------------- */

/* One operator that gantry_network_add_op takes. */
typedef struct gantry_op_info {
  size_t struct_size;
  const char* name;       /* valid for ever */
  int32_t min_inputs;
  int32_t max_inputs;     /* -1: any number */
  int32_t differentiable; /* 1: gradients pass through it, of any order */
} gantry_op_info;
#define GANTRY_OP_INFO_INIT {sizeof(gantry_op_info), 0, 0, 0, 0}

/* Operators known. Thread-safe. */
GANTRY_API size_t gantry_op_count(void);
/* The index-th operator by name. Thread-safe. Errors: GANTRY_INVALID_ARGUMENT  index >= gantry_op_count(). */
GANTRY_API gantry_status gantry_op_get(size_t index, gantry_op_info* info);

/* ---- context --------------------------------------------------------------------------------------------------- */

typedef struct gantry_context gantry_context; /* a device, its memory budget, its threads, and where messages go */

typedef enum gantry_log_level {
  GANTRY_LOG_NONE = 0,
  GANTRY_LOG_ERROR = 1,
  GANTRY_LOG_WARNING = 2, /* a slower path than asked for was taken, a setting has no effect */
  GANTRY_LOG_INFO = 3,    /* plans, checkpoints */
  GANTRY_LOG_DEBUG = 4
} gantry_log_level;

/* Gets one message, without a line end, valid during the call. Called on the thread that made the gantry_* call; it must not
 * call back into the handle at work. */
typedef void (*gantry_log_function)(int32_t level, const char* message, void* payload);

typedef struct gantry_context_config {
  size_t struct_size;
  const char* device;      /* "cpu", also as NULL */
  uint64_t memory_bytes;   /* what all sessions of the context may reserve together; 0: no limit but the machine's */
  int32_t thread_count;    /* threads that one step may use; 0: one for each core the process may run on, shared out among the ranks
                              that may run on the same */
  int32_t log_level;       /* messages up to this gantry_log_level reach `log` */
  gantry_log_function log; /* NULL: no messages */
  void* log_payload;       /* given to `log` as it is */
  int32_t join_job;        /* 1: become a rank of the job that the environment describes (GANTRY_*, torchrun, PMIx, Slurm, Open MPI);
                              with one rank, or none described, the context is as without */
  int32_t reserved;        /* 0 */
} gantry_context_config;
#define GANTRY_CONTEXT_CONFIG_INIT {sizeof(gantry_context_config), 0, 0, 0, GANTRY_LOG_WARNING, 0, 0, 0, 0}

/* `config` may be NULL: the defaults. With join_job, waits for the other ranks, 30 s at most.
 * Errors: GANTRY_UNSUPPORTED       no such device in this build or on this machine
 *         GANTRY_INVALID_ARGUMENT  the environment describes a job in part; the message names the missing variable
 *         GANTRY_TIMED_OUT         ranks did not come; the message names them. */
GANTRY_API gantry_status gantry_context_create(const gantry_context_config* config, gantry_context** context);
/* The sessions and runs made with the context keep what they need of it: any order of destruction is right. */
GANTRY_API void gantry_context_destroy(gantry_context* context);
/* This process in its job: 0 <= rank < rank count; 0 and 1 without a job. */
GANTRY_API int32_t gantry_context_rank(const gantry_context* context);
GANTRY_API int32_t gantry_context_rank_count(const gantry_context* context);
/* 1: the last gantry_run_open or gantry_gan_plan of this context ended on all ranks with the same error, that of the rank which its message
 * names: one rank need tell it. */
GANTRY_API int32_t gantry_context_failed_together(const gantry_context* context);
/* Threads that a step may use. */
GANTRY_API int32_t gantry_context_thread_count(const gantry_context* context);
/* Bytes that the context's sessions hold reserved now. Thread-safe. */
GANTRY_API uint64_t gantry_context_reserved_bytes(const gantry_context* context);

/* ---- arrays and archives --------------------------------------------------------------------------------------- */

typedef struct gantry_array gantry_array;     /* numbers with a shape in host memory; it does not change once made */
typedef struct gantry_archive gantry_archive; /* an opened file of named arrays, which are read one by one */

/* A copy of `data`, elements of `dtype` in row-major order; NULL: all zero. `rank` may be 0 (a scalar) to 32.
 * Errors: GANTRY_INVALID_ARGUMENT, GANTRY_OUT_OF_MEMORY. */
GANTRY_API gantry_status gantry_array_create(int32_t dtype, size_t rank, const int64_t* dims, const void* data,
                                             gantry_array** array);
/* An array of a .npy, .npz or .safetensors file, recognised by its content. `name` says which of a file of several; NULL
 * where there is one only. Errors: GANTRY_NOT_FOUND  no file, or no array of that name
 *                                   GANTRY_BAD_DATA   the file is damaged or of another kind. */
GANTRY_API gantry_status gantry_array_load(const char* path, const char* name, gantry_array** array);
/* The values as GANTRY_F32 or GANTRY_F64, rounded to nearest. Errors: GANTRY_INVALID_ARGUMENT  another `dtype`. */
GANTRY_API gantry_status gantry_array_convert(const gantry_array* array, int32_t dtype, gantry_array** converted);
/* Writes a .npy file: beside `path` first, synced, then renamed, as all files that Gantry writes. */
GANTRY_API gantry_status gantry_array_save(const gantry_array* array, const char* path);
GANTRY_API void gantry_array_destroy(gantry_array* array);
GANTRY_API int32_t gantry_array_dtype(const gantry_array* array); /* a gantry_dtype */
GANTRY_API size_t gantry_array_rank(const gantry_array* array);
GANTRY_API const int64_t* gantry_array_dims(const gantry_array* array); /* gantry_array_rank() of them */
GANTRY_API size_t gantry_array_element_count(const gantry_array* array);
GANTRY_API size_t gantry_array_size_bytes(const gantry_array* array);
GANTRY_API const void* gantry_array_data(const gantry_array* array); /* gantry_array_size_bytes(), row-major */

/* Opens a .npz or .safetensors file, or a .npy file as an archive of one array named "". Errors as gantry_array_load. */
GANTRY_API gantry_status gantry_archive_open(const char* path, gantry_archive** archive);
GANTRY_API void gantry_archive_destroy(gantry_archive* archive);
GANTRY_API size_t gantry_archive_count(const gantry_archive* archive);
/* The name of the index-th array, in the file's order. */
GANTRY_API const char* gantry_archive_name(const gantry_archive* archive, size_t index);
/* Errors: GANTRY_NOT_FOUND, GANTRY_BAD_DATA, GANTRY_OUT_OF_MEMORY. */
GANTRY_API gantry_status gantry_archive_read(const gantry_archive* archive, const char* name, gantry_array** array);

/* One PNG with all images, row by row from the upper left: `images` is [count, channels, height, width] with values in
 * [-1, 1] and 1 or 3 channels; `columns` a row, 0: about square. */
GANTRY_API gantry_status gantry_image_grid_write(const char* path, const float* images, int64_t count, int64_t channels,
                                                 int64_t height, int64_t width, int64_t columns);

/* ---- networks -------------------------------------------------------------------------------------------------- */

typedef struct gantry_network gantry_network; /* a model's forward pass for one batch size, with its first weights */
typedef int32_t gantry_value;                 /* a value inside one network */

typedef struct gantry_onnx_config {
  size_t struct_size;
  const char* name;          /* for messages; NULL: the file's */
  int64_t batch_size;        /* replaces a symbolic batch dimension; 0: the file's own, which must be a number */
  int32_t dtype;             /* GANTRY_F32 or GANTRY_F64: what the network computes in */
  int32_t inference;         /* 1: batch norm uses its running statistics, dropout does nothing */
  const char* const* frozen; /* names of weights that are not trained */
  size_t frozen_count;
} gantry_onnx_config;
#define GANTRY_ONNX_CONFIG_INIT {sizeof(gantry_onnx_config), 0, 0, GANTRY_F32, 0, 0, 0}

/* A network from an ONNX file (opset 7 to 21); its weights are the first weights, and tensors keep their names.
 * `config` may be NULL. Errors: GANTRY_NOT_FOUND    no such file
 *                               GANTRY_BAD_DATA     the file is damaged or inconsistent
 *                               GANTRY_UNSUPPORTED  an operator or mode that Gantry lacks; the message names the node. */
GANTRY_API gantry_status gantry_network_load_onnx(const char* path, const gantry_onnx_config* config,
                                                  gantry_network** network);
/* The same from `size_bytes` of memory. */
GANTRY_API gantry_status gantry_network_load_onnx_memory(const void* bytes, size_t size_bytes,
                                                         const gantry_onnx_config* config, gantry_network** network);

typedef struct gantry_family_config {
  size_t struct_size;
  int64_t image_size;  /* height and width: a power of two, 16 to 512 */
  int64_t channels;
  int64_t width;       /* channels at the highest resolution */
  int64_t latent_size; /* numbers that one sample is made from */
  int64_t batch_size;
  int32_t dtype;       /* GANTRY_F32 or GANTRY_F64 */
  int32_t reserved;    /* 0 */
  int64_t frames;      /* of a clip of "video": a multiple of image_size / 4; 0: image_size / 2. 0 for other families */
} gantry_family_config;
#define GANTRY_FAMILY_CONFIG_INIT {sizeof(gantry_family_config), 64, 3, 64, 100, 64, GANTRY_F32, 0, 0}

/* Both networks of a published architecture: "dcgan", "wgan-gp", "sngan", "r3gan" or "video". `config` may be NULL.
 * Errors: GANTRY_NOT_FOUND         unknown family; the message lists them
 *         GANTRY_INVALID_ARGUMENT  a size that the family cannot have. */
GANTRY_API gantry_status gantry_network_create_family(const char* family, const gantry_family_config* config,
                                                      gantry_network** generator, gantry_network** discriminator);

/* A network made op by op, empty at first. `name` is for messages. */
GANTRY_API gantry_status gantry_network_create(const char* name, gantry_network** network);
GANTRY_API void gantry_network_destroy(gantry_network* network);

/* An input. Inputs are bound in the order in which they were added: of a generator noise, of a discriminator samples.
 * dims[0] is the batch. The input named "random_state", GANTRY_I64 [2], is filled by the session for ops that draw numbers. */
GANTRY_API gantry_status gantry_network_add_input(gantry_network* network, const char* name, int32_t dtype, size_t rank,
                                                  const int64_t* dims, gantry_value* value);

typedef enum gantry_initializer_kind {
  GANTRY_CONSTANT = 0, /* every element `a` */
  GANTRY_NORMAL = 1,   /* mean `a`, standard deviation `b` */
  GANTRY_UNIFORM = 2,  /* from `a` to `b` */
  GANTRY_DATA = 3      /* `data`, as many as the tensor has elements */
} gantry_initializer_kind;

/* The first content of a tensor. Draws depend on the session's seed and the tensor's name only. */
typedef struct gantry_initializer {
  size_t struct_size;
  int32_t kind;       /* a gantry_initializer_kind */
  int32_t statistic;  /* 1: a tensor that the optimizer leaves alone; see gantry_network_update */
  double a, b;
  const double* data; /* GANTRY_DATA: row-major */
  size_t data_count;
} gantry_initializer;
#define GANTRY_INITIALIZER_INIT {sizeof(gantry_initializer), GANTRY_CONSTANT, 0, 0.0, 0.0, 0, 0}

/* A trained tensor (or a statistic). `initializer` NULL: zeros. In a session its name is "<role>.<name>". */
GANTRY_API gantry_status gantry_network_add_parameter(gantry_network* network, const char* name, int32_t dtype,
                                                      size_t rank, const int64_t* dims,
                                                      const gantry_initializer* initializer, gantry_value* value);

typedef enum gantry_attribute_kind {
  GANTRY_ATTRIBUTE_INT = 0,
  GANTRY_ATTRIBUTE_FLOAT = 1,
  GANTRY_ATTRIBUTE_STRING = 2,
  GANTRY_ATTRIBUTE_INTS = 3,
  GANTRY_ATTRIBUTE_FLOATS = 4
} gantry_attribute_kind;

/* One attribute of an op; in an array of them, the first one's struct_size is the distance between two. */
typedef struct gantry_attribute {
  size_t struct_size;
  const char* name;
  int32_t kind;         /* a gantry_attribute_kind; it says which of the fields below counts */
  int64_t int_value;
  double float_value;
  const char* string_value;
  const int64_t* ints;  /* `count` of them */
  const double* floats; /* `count` of them */
  size_t count;
} gantry_attribute;
#define GANTRY_ATTRIBUTE_INIT {sizeof(gantry_attribute), 0, 0, 0, 0.0, 0, 0, 0, 0}
/* Initializers for single attributes: gantry_attribute slope = GANTRY_FLOAT("slope", 0.2); */
#define GANTRY_INT(name, value) {sizeof(gantry_attribute), name, GANTRY_ATTRIBUTE_INT, value, 0.0, 0, 0, 0, 0}
#define GANTRY_FLOAT(name, value) {sizeof(gantry_attribute), name, GANTRY_ATTRIBUTE_FLOAT, 0, value, 0, 0, 0, 0}
#define GANTRY_STRING(name, value) {sizeof(gantry_attribute), name, GANTRY_ATTRIBUTE_STRING, 0, 0.0, value, 0, 0, 0}
#define GANTRY_INTS(name, values, count) \
  {sizeof(gantry_attribute), name, GANTRY_ATTRIBUTE_INTS, 0, 0.0, 0, values, 0, count}

/* Adds the operator `op` ("matmul", "conv", ...; gantry_op_get lists them, ops/functional.h of the sources describes them). The names
 * "linear" (x, weight [out, in], and a bias [out] or none) and "relu" are understood too. Writes as many values as `op` has
 * outputs. Errors: GANTRY_NOT_FOUND         no such operator; the message names the nearest
 *                  GANTRY_INVALID_ARGUMENT  inputs or attributes do not fit (the message has all shapes), or `op` has
 *                                           more than `output_capacity` outputs. The network is as before. */
GANTRY_API gantry_status gantry_network_add_op(gantry_network* network, const char* op, size_t input_count,
                                               const gantry_value* inputs, size_t attribute_count,
                                               const gantry_attribute* attributes, size_t output_capacity,
                                               gantry_value* outputs);
/* `value` is the new content of the statistic `name` after each use of the network: running means and the like. */
GANTRY_API gantry_status gantry_network_update(gantry_network* network, const char* name, gantry_value value);
/* `value` is an output; a generator's first output are its samples, a discriminator's its logits. */
GANTRY_API gantry_status gantry_network_set_output(gantry_network* network, const char* name, gantry_value value);
/* The shape of a value: its rank, and its dimensions as far as `capacity` goes. */
GANTRY_API gantry_status gantry_network_shape(const gantry_network* network, gantry_value value, size_t capacity,
                                              int64_t* dims, size_t* rank);
/* Elements of all trained tensors together. */
GANTRY_API uint64_t gantry_network_parameter_count(const gantry_network* network);
/* The program as text, to read and to diff. */
GANTRY_API gantry_status gantry_network_text(gantry_network* network, const char** text);

/* ---- GAN sessions ---------------------------------------------------------------------------------------------- */

typedef struct gantry_gan gantry_gan; /* networks, losses and optimizers as one step program, its plan and its memory */

typedef enum gantry_loss {       /* r, f: logits of real and made samples; means over all logits */
  GANTRY_LOSS_NONSATURATING = 0, /* D: softplus(-r) + softplus(f)  G: softplus(-f) */
  GANTRY_LOSS_HINGE = 1,         /* D: relu(1 - r) + relu(1 + f)   G: -f */
  GANTRY_LOSS_WGAN = 2,          /* D: f - r                       G: -f */
  GANTRY_LOSS_LEASTSQUARES = 3,  /* D: (r - 1)^2 + f^2             G: (f - 1)^2 */
  GANTRY_LOSS_RELATIVISTIC = 4   /* D: softplus(-(r - f))          G: softplus(-(f - r)), in pairs */
} gantry_loss;

typedef enum gantry_kernels {
  GANTRY_KERNELS_FAST = 0,     /* f32 kernels for this processor; reference kernels where there is none */
  GANTRY_KERNELS_REFERENCE = 1 /* plain loops, the truth that the others are tested against */
} gantry_kernels;

typedef struct gantry_gan_config {
  size_t struct_size;
  int32_t loss;             /* a gantry_loss */
  int32_t dtype;            /* GANTRY_F32 or GANTRY_F64, of every network */
  double r1, r2;            /* weight of r/2 * mean |d(sum D)/d(sample)|^2 at real and at made samples; 0: none */
  double gradient_penalty;  /* weight of mean (|d(sum D)/d(mix)| - 1)^2; 0: none */
  double ema;               /* average = ema * average + (1 - ema) * weights after each generator update; 0: none */
  int32_t penalty_every;    /* r1 and r2 on every k-th step only, the first one included */
  int32_t n_critic;         /* discriminator updates a step */
  int32_t accumulate;       /* micro-batches an update; networks are made for one of them */
  int32_t kernels;          /* a gantry_kernels */
  uint64_t seed;            /* of first weights, noise and dropout */
  int32_t gradient_norms;   /* 1: scalars "gradient_norm.<tensor>" of every parameter's first update in a step */
  int32_t disable_health;   /* 1: leave out the scalars that watch for collapse and divergence */
  int32_t disable_winograd; /* 1: no Winograd forms of convolutions, which are faster and a little less exact */
  int32_t disable_fusion;   /* 1: no op is joined with another */
  int32_t disable_in_place; /* 1: no op writes over its input */
  int32_t reserved;         /* 0 */
} gantry_gan_config;
#define GANTRY_GAN_CONFIG_INIT                                                                                       \
  {sizeof(gantry_gan_config), GANTRY_LOSS_NONSATURATING, GANTRY_F32, 0.0, 0.0, 0.0, 0.0, 1, 1, 1, GANTRY_KERNELS_FAST, \
   0, 0, 0, 0, 0, 0, 0}

typedef enum gantry_optimizer_kind {
  GANTRY_ADAM = 0,  /* Kingma and Ba 2015; weight decay is added to the gradient */
  GANTRY_ADAMW = 1, /* Loshchilov and Hutter 2019; weight decay acts on the weights */
  GANTRY_SGD = 2
} gantry_optimizer_kind;

/* How one role's weights learn; every formula is PyTorch's. */
typedef struct gantry_optimizer {
  size_t struct_size;
  int32_t kind;     /* a gantry_optimizer_kind */
  int32_t nesterov; /* GANTRY_SGD: 1 looks ahead along the momentum */
  double learning_rate;
  double beta1, beta2, epsilon; /* GANTRY_ADAM and GANTRY_ADAMW */
  double momentum;              /* GANTRY_SGD; 0: none */
  double weight_decay;
  double clip_norm; /* gradients are scaled so that their joint norm is at most this; 0: never */
} gantry_optimizer;
#define GANTRY_OPTIMIZER_INIT {sizeof(gantry_optimizer), GANTRY_ADAM, 0, 2e-4, 0.5, 0.999, 1e-8, 0.0, 0.0, 0.0}

/* An empty session. `config` may be NULL. Add roles, then plan, then step. */
GANTRY_API gantry_status gantry_gan_create(gantry_context* context, const gantry_gan_config* config, gantry_gan** gan);
GANTRY_API void gantry_gan_destroy(gantry_gan* gan);
/* Adds a copy of `network` as the generator or discriminator `role`, a name of letters, digits and '_' that no other role
 * has. There may be several of both; every discriminator judges every generator. `optimizer` may be NULL.
 * Errors: GANTRY_FAILED_PRECONDITION  the session is planned already. */
GANTRY_API gantry_status gantry_gan_add_generator(gantry_gan* gan, const char* role, const gantry_network* network,
                                                  const gantry_optimizer* optimizer);
GANTRY_API gantry_status gantry_gan_add_discriminator(gantry_gan* gan, const char* role, const gantry_network* network,
                                                      const gantry_optimizer* optimizer);

typedef struct gantry_plan_info {
  size_t struct_size;
  uint64_t arena_bytes;       /* of the device: the session's states, activations, gradients, scratch, inputs, and what it lends other ranks */
  uint64_t lower_bound_bytes; /* no placement can be lower: the most bytes alive at one time */
  uint64_t state_bytes;       /* of arena_bytes: weights, statistics, moments, averages */
  uint64_t op_count;          /* that a step runs */
  uint64_t buffer_count;
  uint64_t fallback_count;    /* kinds of ops that run on reference kernels though fast ones were asked for */
  uint64_t budget_bytes;      /* of the device; 0: none */
  uint64_t footprint_bytes;   /* arena_bytes of the same step with nothing offloaded and nothing run again */
  uint64_t repeated_op_count; /* ops that run again instead of what they made being kept */
  uint64_t tier_count;        /* tiers that values wait in */
  double predicted_seconds;   /* of a step; as good as the rates that the planner assumes */
  uint64_t mask_count;        /* values of which sign bits are kept */
  uint64_t zero_stash_count;  /* copies to tiers that leave zeros out */
  uint64_t lossy_stash_count; /* copies to tiers that round, as gantry_memory.stash asked for */
  uint64_t lent_device_bytes; /* of arena_bytes: what other ranks' values take, with the gaps before them */
  uint64_t lent_host_bytes;   /* what other ranks' values take of this rank's host memory */
} gantry_plan_info;
#define GANTRY_PLAN_INFO_INIT {sizeof(gantry_plan_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, 0, 0}

/* A tier that values wait in. */
typedef struct gantry_tier_info {
  size_t struct_size;
  const char* name;          /* "host"; lives as long as the session */
  uint64_t bytes;            /* planned and reserved */
  uint64_t high_water_bytes; /* what steps have touched so far: after one, `bytes` */
  uint64_t out_bytes;        /* copied from the device in one step */
  uint64_t in_bytes;         /* copied to the device in one step */
} gantry_tier_info;
#define GANTRY_TIER_INFO_INIT {sizeof(gantry_tier_info), 0, 0, 0, 0, 0}

/* What a step may take of the device, and where values wait that do not fit. Results are the same bits whatever it says, but for `stash`. Texts as in
 * the section [memory] of a run file (docs/reference/memory.md); NULL or "": the default. */
typedef struct gantry_memory {
  size_t struct_size;
  const char* device;        /* "64MiB", or a share of the step with nothing offloaded, "1/4"; of several ranks one each; default: no limit */
  const char* offload;       /* "none", or several of "peer", "host", "remote", "file" joined with "+"; default: "host" */
  const char* host;          /* most bytes in host memory, for this rank's values and others'; default: no limit */
  const char* file;          /* most bytes in the file; default: no limit */
  const char* directory;     /* for the file */
  const char* link;          /* speed that copies are held to: "out=2GB/s,in=2GB/s,latency=10us" */
  int32_t disable_recompute; /* 1: no op runs again */
  int32_t disable_encode;    /* 1: no sign bits in place of values, no copies without zeros; both are lossless */
  const char* stash;         /* "f32", or "bf16": activations that wait in a tier are rounded. Results then depend on the budget */
  int32_t checksums;         /* 1: what tiers give back is compared with what they were given */
  int32_t reserved;          /* 0 */
  const char* machine;       /* a machine file to plan for; default: that of GANTRY_MACHINE, else this machine's calibration */
} gantry_memory;
#define GANTRY_MEMORY_INIT {sizeof(gantry_memory), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
/* Call before gantry_gan_plan. With "peer" or "remote" every rank of the job gives the same texts, and where ranks borrow from other nodes,
 * gantry_gan_destroy and gantry_run_destroy wait until no rank reads from this one any more.
 * Errors: GANTRY_INVALID_ARGUMENT     a text is not as above; the message names it
 *         GANTRY_FAILED_PRECONDITION  the session is planned already. */
GANTRY_API gantry_status gantry_gan_set_memory(gantry_gan* gan, const gantry_memory* memory);

/* How the step is shared out over the ranks of the context's job: "batch" (samples), "space" (rows or frames), "channel" (channels of
 * layers, with their weights), "shard" (weights, moments and averages are held once), "roles" (generators and discriminators),
 * "pipeline" (layers of every network), or several joined with "+", but for space with channel and roles with pipeline. Call before gantry_gan_plan. With several ranks, gantry_gan_plan, every step and, with
 * "shard", "channel", "roles" and "pipeline", whatever reads or writes states are calls of all ranks, in the same order and with the same arguments: the
 * whole batch, of which each rank takes its part. Results are those of one rank up to the order of sums.
 * Errors: GANTRY_INVALID_ARGUMENT     `split` is not as above
 *         GANTRY_FAILED_PRECONDITION  the session is planned already. */
GANTRY_API gantry_status gantry_gan_set_parallel(gantry_gan* gan, const char* split);
/* How exchanges between ranks are carried out. `overlap` is "on" (as NULL and ""): those of gradients and gathers of weights run beside
 * compute; "across": the last network's beside the next step, too, and what reads states or samples is then a call of all ranks; "off": each is
 * waited for where it begins. The same bits. `link` holds exchanges to the speed of a link, "1GB/s,50us"; NULL or "": as
 * fast as they go. Call before gantry_gan_plan; all ranks alike.
 * Errors: GANTRY_INVALID_ARGUMENT     `overlap` or `link` is not as above
 *         GANTRY_FAILED_PRECONDITION  the session is planned already. */
GANTRY_API gantry_status gantry_gan_set_exchange(gantry_gan* gan, const char* overlap, const char* link);

/* Builds the step program, plans it, reserves the arena and fills the first weights. `info` may be NULL.
 * Errors: GANTRY_INVALID_ARGUMENT     roles, shapes or options do not fit together; the message names them
 *         GANTRY_OUT_OF_MEMORY        the arena does not fit the context's budget; the message has all bytes
 *         GANTRY_FAILED_PRECONDITION  the session is planned already. */
GANTRY_API gantry_status gantry_gan_plan(gantry_gan* gan, gantry_plan_info* info);
/* The plan as text: totals, the largest buffers at the peak. */
GANTRY_API gantry_status gantry_gan_plan_text(gantry_gan* gan, const char** text);
/* Writes the plan to a file that another session of the same model, batch, budget and machine can carry out without planning
 * (docs/reference/plan-file.md). Errors: GANTRY_NOT_FOUND, GANTRY_PERMISSION_DENIED, GANTRY_IO_ERROR. */
GANTRY_API gantry_status gantry_gan_write_plan(gantry_gan* gan, const char* path);
/* gantry_gan_plan then carries out the plan of this file. It refuses one that was made for another model, machine or version, with
 * GANTRY_INVALID_ARGUMENT and what differs. Call before it. */
GANTRY_API gantry_status gantry_gan_use_plan(gantry_gan* gan, const char* path);

/* A plan file, to look at. Texts live until the handle's next call that gives one. Not thread-safe. */
typedef struct gantry_plan_file gantry_plan_file;
GANTRY_API gantry_status gantry_plan_file_open(const char* path, gantry_plan_file** file);
GANTRY_API void gantry_plan_file_destroy(gantry_plan_file* file);
GANTRY_API gantry_status gantry_plan_file_text(gantry_plan_file* file, const char** text);
/* What changes from `file` to `other`. */
GANTRY_API gantry_status gantry_plan_file_diff(gantry_plan_file* file, const gantry_plan_file* other, const char** text);
/* GANTRY_FAILED_PRECONDITION where two buffers that live at one time overlap, one lies outside its slab, or the budget is not held; the
 * message names them. That every op reads what was made for it is proven when the plan is carried out. */
GANTRY_API gantry_status gantry_plan_file_check(const gantry_plan_file* file);

/* The step program as text. `executed` 0: as built, also before the plan; 1: as it runs, after fusion and lowering. */
GANTRY_API gantry_status gantry_gan_program_text(gantry_gan* gan, int32_t executed, const char** text);
/* Highest byte of the device that a step has touched so far, of this rank or of one that it lends memory: after a step it equals
 * gantry_plan_info.arena_bytes. */
GANTRY_API uint64_t gantry_gan_high_water_bytes(const gantry_gan* gan);
/* Tier `index` of gantry_plan_info.tier_count. Errors: GANTRY_INVALID_ARGUMENT there is none. */
GANTRY_API gantry_status gantry_gan_tier(const gantry_gan* gan, size_t index, gantry_tier_info* info);

/* Elements that one step reads, all micro-batches of all draws together, and the shape of a batch of samples. */
typedef struct gantry_step_sizes {
  size_t struct_size;
  uint64_t real_elements;  /* n_critic * accumulate batches */
  uint64_t noise_elements;
  uint64_t mix_elements;   /* 0 without gradient penalty */
  int64_t batch_size;      /* of one micro-batch */
  int64_t images_per_step; /* real samples */
  int64_t sample_rank;     /* dimensions of a batch of samples; at most 8 */
  int64_t sample_dims[8];
} gantry_step_sizes;
#define GANTRY_STEP_SIZES_INIT {sizeof(gantry_step_sizes), 0, 0, 0, 0, 0, 0, {0, 0, 0, 0, 0, 0, 0, 0}}
/* Errors: GANTRY_FAILED_PRECONDITION  not planned. */
GANTRY_API gantry_status gantry_gan_sizes(const gantry_gan* gan, gantry_step_sizes* sizes);

/* What one step reads, draw by draw; the session reads it during the call only. Values are f32 also in an f64 session. */
typedef struct gantry_batch {
  size_t struct_size;
  const float* real;  /* real_elements of gantry_step_sizes */
  size_t real_count;
  const float* noise; /* NULL: standard normal, drawn from the seed and the step's number */
  size_t noise_count;
  const float* mix;   /* the e of e * real + (1 - e) * made; NULL: uniform, drawn likewise */
  size_t mix_count;
} gantry_batch;
#define GANTRY_BATCH_INIT {sizeof(gantry_batch), 0, 0, 0, 0, 0, 0}

/* One adversarial step: every discriminator learns n_critic times, then every generator. From the second call on it
 * allocates nothing. Errors: GANTRY_INVALID_ARGUMENT     a count is wrong
 *                            GANTRY_FAILED_PRECONDITION  not planned, or a step before ended with one of those below
 *                            GANTRY_NOT_FINITE           a loss is NaN or infinite
 *                            GANTRY_IO_ERROR             a tier failed twice, or gave back other bytes than it was given: states are
 *                                                        half changed, and a new session has to load a checkpoint. */
GANTRY_API gantry_status gantry_gan_step(gantry_gan* gan, const gantry_batch* batch);
/* Steps finished since the first, those before a resume included. */
GANTRY_API int64_t gantry_gan_step_count(const gantry_gan* gan);
/* The role's learning rate from the next step on. */
GANTRY_API gantry_status gantry_gan_set_learning_rate(gantry_gan* gan, const char* role, double learning_rate);

/* What the last step measured: "discriminator_loss", "generator_loss", "r1", "r2", "gradient_penalty", "mean_logit_real",
 * "mean_logit_fake", "<role>.gradient_norm", ... gantry_gan_scalar_name lists them. */
GANTRY_API gantry_status gantry_gan_read_scalar(const gantry_gan* gan, const char* name, double* value);
GANTRY_API size_t gantry_gan_scalar_count(const gantry_gan* gan);
GANTRY_API const char* gantry_gan_scalar_name(const gantry_gan* gan, size_t index);

typedef enum gantry_state_kind {
  GANTRY_STATE_PARAMETER = 0, /* trained */
  GANTRY_STATE_STATISTIC = 1, /* running means and the like */
  GANTRY_STATE_MOMENT = 2,    /* of an optimizer */
  GANTRY_STATE_AVERAGE = 3    /* EMA of a parameter */
} gantry_state_kind;

/* A tensor that lives from step to step. Pointers are valid as long as the session. */
typedef struct gantry_state_info {
  size_t struct_size;
  const char* name;   /* "generator.0.weight", "generator.0.weight.moment1", "ema.generator.0.weight" */
  const char* role;   /* "generator" */
  int32_t kind;       /* a gantry_state_kind */
  int32_t dtype;      /* a gantry_dtype */
  size_t rank;
  const int64_t* dims;
  size_t element_count;
} gantry_state_info;
#define GANTRY_STATE_INFO_INIT {sizeof(gantry_state_info), 0, 0, 0, 0, 0, 0, 0}

/* States of a planned session; 0 before. */
GANTRY_API size_t gantry_gan_state_count(const gantry_gan* gan);
/* Errors: GANTRY_INVALID_ARGUMENT  index >= gantry_gan_state_count(). */
GANTRY_API gantry_status gantry_gan_state_get(const gantry_gan* gan, size_t index, gantry_state_info* info);
/* Copies a state out or in, row-major, as doubles whatever its type; `count` is its element count.
 * Errors: GANTRY_NOT_FOUND  the message names the nearest name; GANTRY_INVALID_ARGUMENT  wrong count. */
GANTRY_API gantry_status gantry_gan_read_state(const gantry_gan* gan, const char* name, double* to, size_t count);
GANTRY_API gantry_status gantry_gan_write_state(gantry_gan* gan, const char* name, const double* from, size_t count);

/* Draws `count` samples from the first generator into `to`, sample_count floats: count times the elements of one sample.
 * `use_average` 1: on its EMA weights where the session has some. The noise depends on `noise_seed` only. Training goes on
 * unchanged. */
GANTRY_API gantry_status gantry_gan_sample(gantry_gan* gan, int64_t count, uint64_t noise_seed, int32_t use_average,
                                           float* to, size_t sample_count);

/* Writes everything that the session needs to go on bit for bit. Errors: GANTRY_NO_SPACE, GANTRY_IO_ERROR,
 * GANTRY_CANNOT_CREATE; a file that was there is as before. */
GANTRY_API gantry_status gantry_gan_save(gantry_gan* gan, const char* path);
/* Goes on from a file of gantry_gan_save, in a session planned with the same roles and configuration.
 * Errors: GANTRY_NOT_FOUND, GANTRY_BAD_DATA (damaged, or of another model: the message names the tensor); the session is
 * as before. */
GANTRY_API gantry_status gantry_gan_resume(gantry_gan* gan, const char* path);

/* ---- data sets ------------------------------------------------------------------------------------------------- */

typedef struct gantry_data gantry_data; /* an endless stream of shuffled batches of a data set, read ahead */

typedef struct gantry_data_config {
  size_t struct_size;
  int64_t batch_size;         /* samples that one gantry_data_next gives; at least 1 */
  uint64_t seed;              /* of the order */
  const char* tensor;         /* which array of a .npz or .safetensors file; NULL where there is one */
  const char* split;          /* "train" (also as NULL) or "test", of a folder of MNIST files */
  int64_t height, width;      /* the images' size; 0: as in the file */
  int64_t channels;           /* of PNG images: 1 or 3; 0: as the first image */
  int32_t channels_last;      /* 1: array samples are H, W, C */
  int32_t no_shuffle;         /* 1: in the order of the file */
  int32_t drop_tail;          /* 1: what is left of an epoch and smaller than a batch is skipped */
  int32_t thread_count;       /* that read; 0: one */
} gantry_data_config;
#define GANTRY_DATA_CONFIG_INIT {sizeof(gantry_data_config), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Opens an IDX, .npy, .npz or .safetensors file, a folder of MNIST files, or a folder of PNG images. 8-bit pixels become
 * [-1, 1]. Files that can be read piece by piece may be larger than memory.
 * Errors: GANTRY_NOT_FOUND, GANTRY_BAD_DATA, GANTRY_OUT_OF_MEMORY. */
GANTRY_API gantry_status gantry_data_open(const char* path, const gantry_data_config* config, gantry_data** data);
GANTRY_API void gantry_data_destroy(gantry_data* data);
/* Samples of one epoch. */
GANTRY_API int64_t gantry_data_size(const gantry_data* data);
/* One sample's shape: its rank, and its dimensions as far as `capacity` goes. */
GANTRY_API gantry_status gantry_data_shape(const gantry_data* data, size_t capacity, int64_t* dims, size_t* rank);
/* The next batch: batch_size samples, `count` floats in all. */
GANTRY_API gantry_status gantry_data_next(gantry_data* data, float* to, size_t count);
/* Samples drawn so far, and going on as if `samples_drawn` had been: with the seed all that a resume needs. */
GANTRY_API uint64_t gantry_data_position(const gantry_data* data);
GANTRY_API gantry_status gantry_data_seek(gantry_data* data, uint64_t samples_drawn);
/* A step of the session on the next batches of the stream, whose batch_size must be the session's; noise and mix are drawn.
 * Errors: those of gantry_data_next and gantry_gan_step. */
GANTRY_API gantry_status gantry_gan_step_data(gantry_gan* gan, gantry_data* data);

/* ---- runs ------------------------------------------------------------------------------------------------------ */

typedef struct gantry_run gantry_run; /* a training run as a file describes it: data, session, log, samples, checkpoints */

/* Reads the run file (TOML; docs/reference/run-file.md has the keys), then GANTRY_<SECTION>_<KEY> of the environment, then
 * `overrides` ("train.batch=32"), opens the data, builds the networks and plans the step. It writes nothing yet.
 * Errors: GANTRY_NOT_FOUND      the run file, the data or a network's file is missing
 *         GANTRY_BAD_DATA       the run file or what it names is wrong; the message has the line, the key, and the nearest right one
 *         GANTRY_OUT_OF_MEMORY  the arena does not fit. */
GANTRY_API gantry_status gantry_run_open(gantry_context* context, const char* path, size_t override_count,
                                         const char* const* overrides, gantry_run** run);
GANTRY_API void gantry_run_destroy(gantry_run* run);
/* Goes on from a checkpoint, bit for bit: `checkpoint` is a file, or "latest" for the newest good one of the run's folder.
 * Before the first step only. Errors: GANTRY_NOT_FOUND, GANTRY_BAD_DATA; the run is as before. */
GANTRY_API gantry_status gantry_run_resume(gantry_run* run, const char* checkpoint);
/* What a program that `gantry run --restarts` may start again calls in place of gantry_run_resume. In a job that was started again and
 * had begun before: goes on from the newest state that is whole, in memory or in the run's folder, or from the beginning where there is
 * none, and `text` says so. Otherwise as gantry_run_resume, or nothing where `checkpoint` is "" or NULL; `text` is then "". It is valid until
 * the next call on the run. A call of all ranks. Errors: those of gantry_run_resume. */
GANTRY_API gantry_status gantry_run_restart(gantry_run* run, const char* checkpoint, const char** text);

GANTRY_API gantry_status gantry_run_plan_info(const gantry_run* run, gantry_plan_info* info);
GANTRY_API gantry_status gantry_run_plan_text(gantry_run* run, const char** text);
/* As gantry_gan_program_text. */
GANTRY_API gantry_status gantry_run_program_text(gantry_run* run, int32_t executed, const char** text);
/* The whole configuration as a run file, every key with its value. */
GANTRY_API gantry_status gantry_run_config_text(gantry_run* run, const char** text);
/* What it trains on: "60000 samples [1,28,28] of ...". */
GANTRY_API gantry_status gantry_run_data_text(gantry_run* run, const char** text);
/* parallel.split, as rank 0 has decided it where the run says "auto"; "" for the default. Valid as long as the run. */
GANTRY_API const char* gantry_run_parallel(const gantry_run* run);
GANTRY_API uint64_t gantry_run_high_water_bytes(const gantry_run* run);
GANTRY_API gantry_status gantry_run_write_plan(gantry_run* run, const char* path);
GANTRY_API gantry_status gantry_run_tier(const gantry_run* run, size_t index, gantry_tier_info* info);
/* Where the run writes. Valid as long as the run. */
GANTRY_API const char* gantry_run_folder(const gantry_run* run);
/* 1 once train.steps, train.images or train.minutes are done. */
GANTRY_API int32_t gantry_run_finished(const gantry_run* run);
GANTRY_API int64_t gantry_run_step_count(const gantry_run* run);
/* Steps that were done before this job: its first start, where it was started again. */
GANTRY_API int64_t gantry_run_first_step(const gantry_run* run);
/* Of the whole run; 0 where only train.minutes ends it. */
GANTRY_API int64_t gantry_run_total_steps(const gantry_run* run);

/* What one step did. Text is valid until the next call on the run. */
typedef struct gantry_step_report {
  size_t struct_size;
  int64_t step;               /* this one, from 1 */
  int64_t total_steps;        /* of the whole run; 0 where only train.minutes ends it */
  int64_t images;             /* real samples seen so far */
  double discriminator_loss;
  double generator_loss;
  double seconds;             /* of the step, the wait for data included, files that it wrote not */
  double data_wait_seconds;
  double images_per_second;   /* over about the last 20 steps */
  double seconds_left;        /* to the end of the run, an estimate */
  int32_t logged;             /* 1: a line went to metrics.jsonl */
  int32_t collapsed;          /* 1: samples have been too alike for long */
  const char* samples_path;   /* of the sheet that the step wrote, or "" */
  const char* checkpoint_path; /* likewise */
  double exposed_seconds;      /* of the step: compute stood still for copies to and from tiers, and for exchanges between ranks */
  const char* exposed_text;    /* the same by kind: "gradient 1.2 ms, statistics 0.4 ms"; "" where there are none */
} gantry_step_report;
#define GANTRY_STEP_REPORT_INIT {sizeof(gantry_step_report), 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0.0, 0}

/* One step, and what is due after it: a log line, a sample sheet, a checkpoint. `report` may be NULL.
 * Errors: GANTRY_NOT_FINITE           the message has the step, what held a NaN or infinity first, and the last checkpoint
 *         GANTRY_FAILED_PRECONDITION  the folder has another run's checkpoints, or another process writes to it
 *         GANTRY_IO_ERROR             a tier failed in mid-step; the message has the last checkpoint, and gantry_run_save refuses
 *         GANTRY_NO_SPACE, GANTRY_IO_ERROR, GANTRY_CANNOT_CREATE  a file could not be written; the step is done. */
GANTRY_API gantry_status gantry_run_step(gantry_run* run, gantry_step_report* report);
/* With several ranks, a call of all of them: `any` is 1 where any rank gave one that is not 0. So all stop after the same step. */
GANTRY_API gantry_status gantry_run_agree(gantry_run* run, int32_t mine, int32_t* any);
/* As gantry_gan_read_scalar. */
GANTRY_API gantry_status gantry_run_read_scalar(const gantry_run* run, const char* name, double* value);
/* Writes a checkpoint, unless this step has one. `path` may be NULL. */
GANTRY_API gantry_status gantry_run_save(gantry_run* run, const char** path);
/* Writes a sheet of samples. `path` may be NULL. */
GANTRY_API gantry_status gantry_run_write_samples(gantry_run* run, const char** path);
/* At the end, finished or stopped: the last checkpoint, sample sheet and log line, and summary.txt, whose text it gives. */
GANTRY_API gantry_status gantry_run_finish(gantry_run* run, const char** summary);

/* Draws `count` samples from a run's checkpoint: f32 [count, sample shape]. `source` is a checkpoint, a run's folder (its newest
 * good checkpoint), or a run file. `use_average` 1: on the EMA weights where it has some. Networks from ONNX files need those
 * files where they were. Errors: GANTRY_NOT_FOUND, GANTRY_BAD_DATA. */
GANTRY_API gantry_status gantry_checkpoint_sample(gantry_context* context, const char* source, int64_t count,
                                                  uint64_t noise_seed, int32_t use_average, gantry_array** samples);

/* ---- planning without training --------------------------------------------------------------------------------- */

typedef struct gantry_planning gantry_planning; /* a run as planners see it: nothing is reserved, nothing runs */

/* Reads a run file as gantry_run_open does; the data only where the samples' channels must be known. Errors as there. */
GANTRY_API gantry_status gantry_planning_open(gantry_context* context, const char* path, size_t override_count,
                                              const char* const* overrides, gantry_planning** planning);
GANTRY_API void gantry_planning_destroy(gantry_planning* planning);
/* Plans the step, or reads memory.plan. `info` may be NULL.
 * Errors: GANTRY_OUT_OF_MEMORY  it does not fit the budget: the message has the bytes that are short, what takes the most, and flags
 *                               with which it fits, each with its peak and predicted seconds
 *         GANTRY_BAD_DATA       memory.plan is no plan for this run. */
GANTRY_API gantry_status gantry_planning_plan(gantry_planning* planning, gantry_plan_info* info);
/* As gantry_gan_plan_text and gantry_gan_write_plan. Errors: GANTRY_FAILED_PRECONDITION  not planned. */
GANTRY_API gantry_status gantry_planning_plan_text(gantry_planning* planning, const char** text);
GANTRY_API gantry_status gantry_planning_write_plan(gantry_planning* planning, const char* path);

typedef struct gantry_ranks_config {
  size_t struct_size;
  int32_t ranks;        /* of the job; 0: `nodes` times the machine's ranks of a node */
  int32_t nodes;        /* 0: as many as `ranks` take */
  const char* parallel; /* as parallel.split; NULL: what the run says */
} gantry_ranks_config;
#define GANTRY_RANKS_CONFIG_INIT {sizeof(gantry_ranks_config), 0, 0, 0}
/* Plans the step of every rank of a job and simulates one on the machine of memory.machine: bytes a rank and tier, seconds, exposed waits, what
 * limits, what was assumed. With "auto" all splits are tried. Errors: GANTRY_OUT_OF_MEMORY  a rank's plan, or every split's, does not fit. */
GANTRY_API gantry_status gantry_planning_ranks(gantry_planning* planning, const gantry_ranks_config* config);
/* As text, or with `json` 1 as one line of JSON. Errors, here and below: GANTRY_FAILED_PRECONDITION  no call of gantry_planning_ranks before. */
GANTRY_API gantry_status gantry_planning_ranks_text(gantry_planning* planning, int32_t json, const char** text);
/* The plan of rank 0 to a file whose name ends in .json; else into a folder, rank-<R>.json for each rank (of more than 16, for the first of
 * those that share a plan), which memory.plan takes. */
GANTRY_API gantry_status gantry_planning_write_ranks(gantry_planning* planning, const char* path);

/* One case of gantry_planning_what_if. Text is valid until its next call. */
typedef struct gantry_what_if {
  size_t struct_size;
  const char* topic;   /* "now", "budget", "offload", "recompute", "states", "idle", "penalty", "accumulate", "batch" */
  const char* what;    /* the case in words */
  const char* flags;   /* of the command line, for this case; "" where there are none */
  int32_t fits;        /* 1: within the budget; without one, within half of what the step takes */
  int32_t reserved;
  int64_t batch;       /* samples per update */
  uint64_t peak_bytes; /* on the device */
  uint64_t tier_bytes; /* off it */
  double seconds;      /* predicted, of a step; with lazy penalties the mean */
} gantry_what_if;
#define GANTRY_WHAT_IF_INIT {sizeof(gantry_what_if), 0, 0, 0, 0, 0, 0, 0, 0, 0.0}
/* What the step would need and take if it were run otherwise: `count` answers, the first for the step as it is. It plans no case to the
 * end: peaks are sums of what is live at once, which layouts reach or nearly so. */
GANTRY_API gantry_status gantry_planning_what_if(gantry_planning* planning, size_t* count);
/* Errors: GANTRY_FAILED_PRECONDITION  not asked yet; GANTRY_INVALID_ARGUMENT  index >= count. */
GANTRY_API gantry_status gantry_planning_answer(const gantry_planning* planning, size_t index, gantry_what_if* answer);
/* All answers as a table, or with `json` 1 as one line of JSON (docs/reference/what-if.md). */
GANTRY_API gantry_status gantry_planning_what_if_text(gantry_planning* planning, int32_t json, const char** text);

typedef struct gantry_calibrate_config {
  size_t struct_size;
  const char* out;              /* machine file to write; NULL: where later plans on this machine look */
  const char* directory;        /* folder of a file tier to measure as well; NULL: none */
  const char* run;              /* run file whose step is measured as well; what the machine file has already is kept; NULL: none */
  const char* const* overrides; /* of the run file: `override_count` */
  size_t override_count;
  int32_t steps;                /* that count, of each step measured; 0: 3 */
  int32_t reserved;             /* 0 */
} gantry_calibrate_config;
#define GANTRY_CALIBRATE_CONFIG_INIT {sizeof(gantry_calibrate_config), 0, 0, 0, 0, 0, 0, 0}
typedef struct gantry_calibration {
  size_t struct_size;
  double predicted_seconds; /* of the run's step with the new machine file; 0 without a run */
  double measured_seconds;  /* likewise */
  char path[1024];          /* of the file written */
} gantry_calibration;
#define GANTRY_CALIBRATION_INIT {sizeof(gantry_calibration), 0.0, 0.0, {0}}
/* Measures what ops and copies take on this machine, some seconds long, and keeps it in a machine file (docs/reference/machine-file.md):
 * plans are then chosen and predicted by it. Results of training do not depend on it. `config` and `result` may be NULL.
 * In a job a call of all ranks with the same `config`, which must name a run: its ops are measured on every rank while the others are at work,
 * with the link between them, and the first rank writes the file.
 * Errors: GANTRY_CANNOT_CREATE, GANTRY_NO_SPACE, GANTRY_IO_ERROR  the file; GANTRY_FAILED_PRECONDITION  no `out`, and neither
 * XDG_CACHE_HOME nor HOME is set; those of gantry_run_open. */
GANTRY_API gantry_status gantry_calibrate(gantry_context* context, const gantry_calibrate_config* config, gantry_calibration* result);

/* A job on a described machine as a tree: its nodes, their ranks with what each may take, the links between them. `machine`: a machine
 * file, or the name of a description. `nodes`: of the job; 0: as many as its ranks take. With `json` 1 as one JSON object. The text is the
 * context's and valid until the next call. Errors: GANTRY_NOT_FOUND  no such file or name; GANTRY_BAD_DATA  the file;
 * GANTRY_INVALID_ARGUMENT  `machine` is empty or "none", `nodes` is below 0 or above 1024, or nothing connects the nodes. */
GANTRY_API gantry_status gantry_context_machine_text(gantry_context* context, const char* machine, int32_t nodes, int32_t json, const char** text);

/* ---- memory layouts -------------------------------------------------------------------------------------------- */

/* The text file of a layout problem is comma-separated: a first line "id,lower,upper,size[,alignment][,group][,offset]", then
 * one buffer a line, live in [lower, upper); docs/reference/layout-files.md has the details. */

typedef struct gantry_layout_config {
  size_t struct_size;
  uint64_t capacity_bytes; /* stop at the first placement that fits; 0: as low as can be found */
  int64_t work_limit;      /* how long to search, in units of about a nanosecond; 0: the default, some seconds */
  uint64_t seed;
} gantry_layout_config;
#define GANTRY_LAYOUT_CONFIG_INIT {sizeof(gantry_layout_config), 0, 0, 1}

typedef struct gantry_layout_result {
  size_t struct_size;
  uint64_t buffer_count;
  uint64_t height_bytes;      /* the highest byte used */
  uint64_t lower_bound_bytes; /* no placement is lower */
  int32_t optimal;            /* 1: proved, the height is the lower bound */
  int32_t fits;               /* 1: height_bytes <= capacity_bytes, or no capacity was given */
  char method[64];            /* what found the placement; "" from gantry_layout_check */
} gantry_layout_result;
#define GANTRY_LAYOUT_RESULT_INIT {sizeof(gantry_layout_result), 0, 0, 0, 0, 0, {0}}

/* Places the buffers of the file `problem_path` and, where they fit, writes the problem with an offset column to
 * `placed_path` (NULL: nowhere). A placement that does not fit is no error: see `fits`. `config` may be NULL.
 * Errors: GANTRY_BAD_DATA  the file is no layout problem; the message names the line. */
GANTRY_API gantry_status gantry_layout_solve(const char* problem_path, const gantry_layout_config* config,
                                             const char* placed_path, gantry_layout_result* result);
/* Proves that the offsets of `placed_path` (columns id and offset; by position where it has no ids) are a right placement of
 * `problem_path`: no two buffers that live at one time share a byte, alignments and fixed offsets are kept, and nothing lies
 * above capacity_bytes (0: no limit). `valid` becomes 1 or 0; where it is 0, gantry_last_error() names the buffers.
 * Errors: GANTRY_BAD_DATA  a file cannot be read as what it should be, or a buffer has no offset. */
GANTRY_API gantry_status gantry_layout_check(const char* problem_path, const char* placed_path, uint64_t capacity_bytes,
                                             int32_t* valid, gantry_layout_result* result);

#ifdef __cplusplus
}
#endif

#endif /* GANTRY_GANTRY_H_ */
