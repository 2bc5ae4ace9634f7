#include <algorithm>

#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/data/batch_stream.h"
#include "runtime/data/data_set.h"

using namespace gantry;
using namespace gantry::c_api;

struct gantry_data {
  std::shared_ptr<const DataSet> data_set;
  std::unique_ptr<BatchStream> stream;
  std::vector<float> step;  // the draws of one step, for gantry_gan_step_data
};

extern "C" {

gantry_status gantry_data_open(const char* path, const gantry_data_config* config, gantry_data** data) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path, data", path, data));
    GANTRY_ASSIGN_OR_RETURN(const gantry_data_config given,
                            ReadStruct(config, gantry_data_config GANTRY_DATA_CONFIG_INIT, "gantry_data_config"));
    DataSetOptions options;
    options.tensor = Text(given.tensor);
    if (given.split != nullptr) options.split = given.split;
    options.height = given.height;
    options.width = given.width;
    options.channels = given.channels;
    options.channels_last = given.channels_last != 0;
    absl::StatusOr<std::unique_ptr<DataSet>> opened = OpenDataSet(path, options);
    if (!opened.ok()) return FromFile(opened.status());
    auto made = std::make_unique<gantry_data>();
    made->data_set = *std::move(opened);
    BatchStreamOptions stream;
    stream.seed = given.seed;
    stream.batch_size = given.batch_size;
    stream.shuffle = given.no_shuffle == 0;
    stream.drop_tail = given.drop_tail != 0;
    stream.threads = std::max(given.thread_count, 1);
    GANTRY_ASSIGN_OR_RETURN(made->stream, BatchStream::Create(made->data_set, stream));
    *data = made.release();
    return absl::OkStatus();
  });
}

void gantry_data_destroy(gantry_data* data) { delete data; }

int64_t gantry_data_size(const gantry_data* data) { return data == nullptr ? 0 : data->data_set->size(); }

gantry_status gantry_data_shape(const gantry_data* data, size_t capacity, int64_t* dims, size_t* rank) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("data, rank", data, rank));
    if (capacity > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("dims", dims));
    const std::vector<int64_t>& shape = data->data_set->sample_shape();
    std::copy_n(shape.begin(), std::min(capacity, shape.size()), dims);
    *rank = shape.size();
    return absl::OkStatus();
  });
}

gantry_status gantry_data_next(gantry_data* data, float* to, size_t count) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("data, to", data, to));
    if (static_cast<int64_t>(count) != data->stream->batch_elements()) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("a batch has %d elements, the buffer %d", data->stream->batch_elements(), count));
    }
    return FromFile(data->stream->Next({to, count}));
  });
}

uint64_t gantry_data_position(const gantry_data* data) { return data == nullptr ? 0 : data->stream->samples_drawn(); }

gantry_status gantry_data_seek(gantry_data* data, uint64_t samples_drawn) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("data", data));
    return data->stream->Seek(samples_drawn);
  });
}

gantry_status gantry_gan_step_data(gantry_gan* gan, gantry_data* data) {
  gantry_batch batch = GANTRY_BATCH_INIT;
  const gantry_status status = Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("gan, data", gan, data));
    if (gan->session == nullptr) return Error(GANTRY_FAILED_PRECONDITION, "the session is not planned yet: call gantry_gan_plan first");
    const GanSession& session = *gan->session;
    const int64_t elements = data->stream->batch_elements();
    if (elements != session.real_elements()) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the session takes batches of %s, the data gives %s", session.sample_shape().ToString(),
                                                            ShapeText(data->stream->batch_shape())));
    }
    data->step.resize(static_cast<size_t>(elements * session.draws_per_step()));
    for (int64_t draw = 0; draw < session.draws_per_step(); ++draw) {
      GANTRY_RETURN_IF_ERROR(FromFile(data->stream->Next(std::span(data->step).subspan(draw * elements, elements))));
    }
    batch.real = data->step.data();
    batch.real_count = data->step.size();
    return absl::OkStatus();
  });
  return status == GANTRY_OK ? gantry_gan_step(gan, &batch) : status;
}

}  // extern "C"
