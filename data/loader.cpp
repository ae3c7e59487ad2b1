#include "data/loader.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "core/check.h"
#include "data/sampler.h"
#if OCCAM_CUDA
#include "core/cuda/event.h"
#endif

namespace occam {

namespace {

constexpr int64_t kChunk = 16;  // images that a worker reads at a time

/// A batch in the making.
struct Job {
  Batch batch;
  PlannedBatch planned;                    // with a renderer
  std::vector<std::string> unreadable;     // by row; empty = fine
  std::map<int64_t, std::string> skipped;  // the same by index, once finished
  std::exception_ptr error;                // of the lowest row that failed
  int64_t error_row = 0;
  int64_t rows = 0, taken = 0, open = 0;  // rows in all, handed out, not finished
  int64_t chunk = 0;                      // rows that a worker takes at a time
};

/// Keeps the rows of `t` that are marked.
Tensor keep_rows(const Tensor& t, const std::vector<bool>& keep, int64_t count) {
  Tensor out = empty(t.shape().with(0, count), {t.dtype(), kCPU});
  size_t bytes = size_t(t.numel() / t.size(0)) * size_of(t.dtype());
  auto* to = static_cast<char*>(out.data_ptr());
  const auto* from = static_cast<const char*>(t.data_ptr());
  for (size_t row = 0; row < keep.size(); ++row) {
    if (!keep[row]) continue;
    std::memcpy(to, from + row * bytes, bytes);
    to += bytes;
  }
  return out;
}

}  // namespace

struct Loader::Impl {
  DatasetPtr data;
  Transform transform;
  LoaderOptions options;
  Sampler sampler;
  int64_t batches;  // an epoch
  LoaderState state;
  std::map<int64_t, std::string> skipped;

  // Batches are numbered epoch * batches + index. Jobs [first_job, first_job + jobs.size()) exist.
  std::mutex mutex;
  std::condition_variable work, done;
  std::deque<std::unique_ptr<Job>> jobs;
  int64_t first_job = 0, end_job = 0;
  bool stop = false;
  std::vector<std::thread> threads;

  // On a GPU always, else where pixels are kept: plans batches and makes them. Without it, workers make them.
  std::optional<Renderer> renderer;

  // CUDA: the next batch, its copy to the device under way; and where the last batches were made.
  std::unique_ptr<Job> staged;
#if OCCAM_CUDA
  std::array<std::optional<cuda::Event>, Loader::kStepsAhead> made;
  size_t oldest = 0;  // of them
#endif

  Impl(DatasetPtr d, Transform t, LoaderOptions o)
      : data(std::move(d)),
        transform(std::move(t)),
        options(std::move(o)),
        sampler(data->size(), {options.batch, options.shuffle, options.drop_last, options.seed}),
        batches(sampler.batches_per_epoch()),
        state(options.start) {
    OCCAM_CHECK(options.epochs >= 0 && options.epochs < (int64_t(1) << 32), ErrorKind::usage,
                "loader: {} epochs", options.epochs);
    OCCAM_CHECK(options.prefetch >= 1, ErrorKind::usage, "loader: prefetch {} is below 1", options.prefetch);
    OCCAM_CHECK(state.epoch >= 0 && state.batch >= 0 && state.batch <= batches, ErrorKind::usage,
                "loader: cannot start at epoch {}, batch {} of {}; did data or batch size change since?",
                state.epoch, state.batch, batches);
    if (options.classes == 0) options.classes = data->classes();
    OCCAM_CHECK(options.classes >= data->classes(), ErrorKind::usage,
                "loader: targets for {} classes, the data set has {}", options.classes, data->classes());
    if (options.workers < 0)
      options.workers = std::clamp(int(std::thread::hardware_concurrency()) / 2, 1, 16);
    OCCAM_CHECK(options.device.is_cpu() || cuda_available(), ErrorKind::device,
                "loader: {} is not there; use --device cpu", options.device.str());
    OCCAM_CHECK(options.dtype == DType::f32 || options.dtype == DType::bf16, ErrorKind::usage,
                "loader: images of dtype {}; expected f32 or bf16", name_of(options.dtype));
    if (options.device.is_cuda() || options.resident == Resident::always)
      renderer.emplace(data, transform,
                       RenderOptions{options.device, options.dtype, options.resident,
                                     options.epochs - state.epoch, options.classes, options.mix.active()});
    first_job = state.epoch * batches + state.batch;
    end_job = std::max(first_job, options.epochs * batches);
    for (int i = 0; i < options.workers; ++i) threads.emplace_back([this] { run_worker(); });
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    work.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  uint64_t augment_key(int64_t epoch) const {
    return hash_name(hash_name(options.seed, "data.augment"), std::to_string(epoch));
  }

  std::unique_ptr<Job> make_job(int64_t number) {
    auto job = std::make_unique<Job>();
    Batch& b = job->batch;
    b.epoch = number / batches;
    b.index = number % batches;
    b.indices = sampler.batch(b.epoch, b.index);
    job->rows = job->open = b.size();
    job->unreadable.resize(size_t(job->rows));
    job->chunk = kChunk;
    if (renderer) {
      job->planned = renderer->begin(b.indices);
      job->planned.noise_key = augment_key(b.epoch);
      if (job->planned.fresh == 0) job->chunk = job->rows;  // draws alone: one worker is enough
      return job;
    }
    const TransformOptions& t = transform.options();
    b.images = empty({job->rows, t.channels, t.size, t.size});
    b.labels = empty({job->rows}, {DType::i64, kCPU});
    return job;
  }

  /// Rows [begin, end) of a job. Runs without the lock.
  void make_rows(Job& job, int64_t begin, int64_t end, std::exception_ptr& error, int64_t& error_row) {
    Batch& b = job.batch;
    auto* images = renderer ? nullptr : b.images.data<float>();
    auto* labels = renderer ? nullptr : b.labels.data<int64_t>();
    uint64_t key = augment_key(b.epoch);
    for (int64_t row = begin; row < end; ++row) {
      int64_t index = b.indices[size_t(row)];
      try {
        Rng rng(key, uint64_t(index));
        if (renderer) {
          renderer->plan(job.planned, row, index, rng);
          continue;
        }
        Sample sample = data->get(index);
        transform.apply(sample.image, rng, images + row * transform.numel());
        labels[row] = sample.label;
      } catch (const Error& e) {
        if (options.skip_errors && e.kind() == ErrorKind::input) {
          job.unreadable[size_t(row)] = e.what();
          continue;
        }
        error = std::current_exception();
        if (e.kind() == ErrorKind::input)
          error = std::make_exception_ptr(Error(
              e.kind(),
              std::string(e.what()) +
                  "\n  fix       replace the file, or leave unreadable ones out with data.on_error=skip"));
        error_row = row;
        return;
      } catch (...) {
        error = std::current_exception();
        error_row = row;
        return;
      }
    }
  }

  /// Once all rows are made: drops unreadable ones, mixes.
  void finish(Job& job) {
    Batch& b = job.batch;
    if (job.error) return;
    std::vector<bool> keep;
    for (const std::string& reason : job.unreadable) keep.push_back(reason.empty());
    int64_t count = std::count(keep.begin(), keep.end(), true);
    if (count < job.rows) {
      if (renderer) {
        Renderer::drop(job.planned, keep);
      } else if (count > 0) {
        b.images = keep_rows(b.images, keep, count);
        b.labels = keep_rows(b.labels, keep, count);
      }
      std::vector<int64_t> indices;
      for (size_t row = 0; row < keep.size(); ++row)
        if (keep[row])
          indices.push_back(b.indices[row]);
        else
          job.skipped[b.indices[row]] = job.unreadable[row];
      b.indices = std::move(indices);
    }
    if (count == 0) return;
    int64_t c = transform.options().channels, side = transform.options().size;
    Rng rng(hash_name(hash_name(options.seed, "data.mix"), std::to_string(b.epoch)), uint64_t(b.index));
    MixPlan plan = draw_mix(options.mix, side, side, rng);
    if (renderer) {
      job.planned.mix = plan;
      if (options.device.is_cpu()) render(job, nullptr);
      return;
    }
    if (options.mix.active()) {
      b.targets = empty({count, options.classes});
      mix_images(b.images.data<float>(), count, c, side, side, plan);
      mix_targets(b.labels.data<int64_t>(), count, options.classes, plan, b.targets.data<float>());
    }
    b.images = raw::to(b.images, options.dtype);
  }

  /// Makes a planned batch on the device.
  void render(Job& job, const Batch* into) {
    Batch& b = job.batch;
    RenderedBatch out;
    if (into) out = {into->images, into->labels, into->targets};
    renderer->render(job.planned, b.indices, out);
    b.images = out.images, b.labels = out.labels, b.targets = out.targets;
    job.planned = {};
  }

  /// A job with rows left to hand out, made if there is room; null when there is nothing to do now. Under the
  /// lock.
  Job* open_job() {
    for (auto& job : jobs)
      if (job->taken < job->rows) return job.get();
    int64_t next = first_job + int64_t(jobs.size());
    if (next >= end_job || int64_t(jobs.size()) >= options.prefetch) return nullptr;
    jobs.push_back(make_job(next));
    if (jobs.back()->chunk < jobs.back()->rows) work.notify_all();  // there is something for others too
    return jobs.back().get();
  }

  /// Makes one chunk of rows if any is to be made. Called and returns under the lock.
  bool work_once(std::unique_lock<std::mutex>& lock) {
    Job* job = open_job();
    if (!job) return false;
    int64_t begin = job->taken, end = std::min(begin + job->chunk, job->rows);
    job->taken = end;
    lock.unlock();
    std::exception_ptr error;
    int64_t error_row = 0;
    make_rows(*job, begin, end, error, error_row);
    lock.lock();
    if (error && (!job->error || error_row < job->error_row)) {
      job->error = error;
      job->error_row = error_row;
    }
    if (job->open == end - begin) {  // the last chunk: nobody else touches this job, and it is not ready yet
      lock.unlock();
      try {
        finish(*job);
      } catch (...) {
        error = std::current_exception();
        job->error = error;
      }
      lock.lock();
    }
    job->open -= end - begin;
    if (job->open == 0) done.notify_all();
    return true;
  }

  void run_worker() {
    std::unique_lock lock(mutex);
    while (!stop) {
      bool worked = false;
      try {
        worked = work_once(lock);
      } catch (...) {  // no memory for a new job
        if (!lock.owns_lock()) lock.lock();
        auto failed = std::make_unique<Job>();
        failed->error = std::current_exception();
        jobs.push_back(std::move(failed));
        end_job = first_job + int64_t(jobs.size());
        done.notify_all();
      }
      if (!worked && !stop) work.wait(lock);
    }
  }

  /// The batch at `state` when it is ready, or after waiting; moves `state` past it. Null at the end of an
  /// epoch.
  std::unique_ptr<Job> take(bool wait) {
    std::unique_lock lock(mutex);
    while (state.batch < batches && state.epoch < options.epochs) {
      int64_t number = state.epoch * batches + state.batch;
      OCCAM_ASSERT(number == first_job);
      auto ready = [&] { return !jobs.empty() && jobs.front()->open == 0; };
      while (!ready()) {
        if (!wait) return nullptr;
        if (options.workers > 0)
          done.wait(lock);
        else
          work_once(lock);
      }
      if (jobs.front()->error) {
        if (!wait) return nullptr;
        std::rethrow_exception(jobs.front()->error);
      }
      std::unique_ptr<Job> job = std::move(jobs.front());
      jobs.pop_front();
      ++first_job;
      work.notify_one();  // one more job may be made
      ++state.batch;
      skipped.insert(job->skipped.begin(), job->skipped.end());
      if (job->batch.size() > 0) return job;
    }
    return nullptr;
  }

  void stage(std::unique_ptr<Job> job) {
    if (!job) return;
    job->planned = renderer->upload(std::move(job->planned));
    staged = std::move(job);
  }

  /// Makes the staged batch on the device, not more than kStepsAhead batches ahead of it.
  void make_staged(const Batch* into) {
#if OCCAM_CUDA
    std::optional<cuda::Event>& event = made[oldest];
    oldest = (oldest + 1) % made.size();
    if (event)
      event->wait();
    else
      event.emplace();
    render(*staged, into);
    event->record(current_stream(options.device).handle);
#endif
  }

  std::optional<Batch> next(const Batch* into) {
    if (state.epoch >= options.epochs) return std::nullopt;
    std::optional<Batch> out;
    if (options.device.is_cpu()) {
      if (std::unique_ptr<Job> job = take(true)) out = std::move(job->batch);
    } else {
      if (!staged) stage(take(true));
      if (staged) {
        make_staged(into);
        out = std::move(staged->batch);
        staged.reset();
        stage(take(false));
      }
    }
    if (!out) state = {state.epoch + 1, 0};
    return out;
  }
};

Loader::Loader(DatasetPtr data, Transform transform, LoaderOptions options)
    : impl_(std::make_unique<Impl>(std::move(data), std::move(transform), std::move(options))) {}
Loader::~Loader() = default;

std::optional<Batch> Loader::next(const Batch* into) { return impl_->next(into); }

LoaderState Loader::state() const {
  if (impl_->staged) return {impl_->staged->batch.epoch, impl_->staged->batch.index};
  return impl_->state;
}

Residence Loader::residence() const {
  return impl_->renderer ? impl_->renderer->residence()
                         : Residence{false, "on a CPU pixels are kept with data.resident=true only"};
}

int64_t Loader::batches_per_epoch() const { return impl_->batches; }
const std::map<int64_t, std::string>& Loader::skipped() const { return impl_->skipped; }

}  // namespace occam
