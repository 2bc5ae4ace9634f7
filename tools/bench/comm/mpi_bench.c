/* What comm_bench measures, by MPI: mpirun -n 2 mpi_bench [ROUNDS] [LARGEST]. A row of JSON for each size, from rank 0.
 * Same method: each rank writes its buffer anew before every call, and the time that this takes by itself is subtracted. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int rank, ranks, rounds = 5;

static int by_size(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return x < y ? -1 : x > y;
}

enum { kAllReduce, kAllGather, kBroadcast, kReduceScatter, kAllToAll, kHalo, kKinds };
static const char* const kNames[kKinds] = {"all_reduce", "all_gather", "broadcast", "reduce_scatter", "all_to_all", "exchange_halo"};

static void fill(float* data, long count, float value) {
  for (long i = 0; i < count; ++i) ((volatile float*)data)[i] = value;
}

static void dirty(int kind, float* a, long count) {
  const long part = count / ranks;
  if (kind == kAllGather) fill(a + rank * part, part, (float)(rank + 1));
  else if (kind != kBroadcast || rank == 0) fill(a, kind == kHalo ? 2 * count : count, (float)(rank + 1));
}

static void call(int kind, float* a, float* b, long count, MPI_Comm ring) {
  const int n = (int)count, part = (int)(count / ranks);
  switch (kind) {
    case kAllReduce: MPI_Allreduce(MPI_IN_PLACE, a, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); break;
    case kAllGather: MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, a, part, MPI_FLOAT, MPI_COMM_WORLD); break;
    case kBroadcast: MPI_Bcast(a, n, MPI_FLOAT, 0, MPI_COMM_WORLD); break;
    case kReduceScatter: MPI_Reduce_scatter_block(a, b, part, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); break;
    case kAllToAll: MPI_Alltoall(a, part, MPI_FLOAT, b, part, MPI_FLOAT, MPI_COMM_WORLD); break;
    default: MPI_Neighbor_alltoall(a, n, MPI_FLOAT, b, n, MPI_FLOAT, ring); break;
  }
}

static void check(int kind, const float* a, const float* b, long count) {
  const long part = count / ranks;
  const float sum = (float)(ranks * (ranks + 1) / 2);
  float wanted = sum;
  const float* data = a;
  long first = 0, last = count;
  if (kind == kReduceScatter) data = b, last = part;
  if (kind == kBroadcast) wanted = 1;
  if (kind == kAllGather) first = (ranks - 1) * part, last = ranks * part, wanted = (float)ranks;
  if (kind == kAllToAll) data = b, last = part, wanted = 1;
  if (kind == kHalo) data = b, wanted = (float)((rank + ranks - 1) % ranks + 1);
  for (long i = first; i < last; ++i) {
    if (data[i] == wanted) continue;
    fprintf(stderr, "%s of %ld floats is wrong at %ld: %g, should be %g\n", kNames[kind], count, i, data[i], wanted);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (argc > 1) rounds = atoi(argv[1]);
  const long largest = argc > 2 ? atol(argv[2]) : 64L << 20;
  const int periodic = 1;
  MPI_Comm ring;
  MPI_Cart_create(MPI_COMM_WORLD, 1, &ranks, &periodic, 0, &ring);
  float* a = malloc((size_t)largest * 2 + 64);
  float* b = malloc((size_t)largest * 2 + 64);
  memset(a, 0, (size_t)largest * 2);
  memset(b, 0, (size_t)largest * 2);
  double *alone = malloc(sizeof(double) * (size_t)rounds), *both = malloc(sizeof(double) * (size_t)rounds);
  for (long bytes = 8; bytes <= largest; bytes *= bytes < 1024 ? 2 : 4) {
    for (int kind = 0; kind < kKinds; ++kind) {
      const long count = bytes / 4;
      if (kind == kHalo && bytes > 1 << 20) continue;
      if ((kind == kAllGather || kind == kReduceScatter || kind == kAllToAll) && count < ranks) continue;
      dirty(kind, a, count);
      call(kind, a, b, count, ring);
      check(kind, a, b, count);
      long repetitions = (16L << 20) / (bytes < 1024 ? 1024 : bytes);
      repetitions = repetitions < 3 ? 3 : repetitions > 2000 ? 2000 : repetitions;
      for (int round = -1; round < rounds; ++round) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begin = MPI_Wtime();
        for (long i = 0; i < repetitions; ++i) dirty(kind, a, count);
        const double first = MPI_Wtime() - begin;
        MPI_Barrier(MPI_COMM_WORLD);
        begin = MPI_Wtime();
        for (long i = 0; i < repetitions; ++i) {
          dirty(kind, a, count);
          call(kind, a, b, count, ring);
        }
        const double second = MPI_Wtime() - begin;
        if (round < 0) continue;
        alone[round] = first * 1e6 / (double)repetitions;
        both[round] = second * 1e6 / (double)repetitions;
      }
      qsort(alone, (size_t)rounds, sizeof(double), by_size);
      qsort(both, (size_t)rounds, sizeof(double), by_size);
      if (rank == 0) {
        printf("{\"name\": \"%s\", \"ranks\": %d, \"bytes\": %ld, \"us\": %.4g, \"best_us\": %.4g}\n", kNames[kind], ranks, bytes,
               both[rounds / 2] - alone[rounds / 2], both[0] - alone[0]);
        fflush(stdout);
      }
    }
  }
  MPI_Finalize();
  return 0;
}
