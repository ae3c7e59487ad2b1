#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "core/check.h"
#include "data/sampler.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

namespace {

constexpr int64_t kChunk = 16;  // images a worker takes at a time

/// A batch in the making.
struct Job {
  Batch batch;
  std::vector<std::string> unreadable;     // by row; empty = fine
  std::map<int64_t, std::string> skipped;  // the same by index, once finished
  std::exception_ptr error;                // of the lowest row that failed
  int64_t error_row = 0;
  int64_t rows = 0, taken = 0, open = 0;  // rows in all, handed out, not finished
};

/// Keeps the rows of `t` that are marked.
Tensor keep_rows(const Tensor& t, const std::vector<bool>& keep, int64_t count, bool pinned) {
  Shape shape = t.shape().with(0, count);
  Tensor out = pinned ? empty_pinned(shape, t.dtype()) : empty(shape, {t.dtype(), kCPU});
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

  // CUDA: the next batch, its copy to the device under way, and the page-locked memory it is copied from.
  std::optional<Batch> staged;
  Batch staged_source;

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
    if (staged) wait_for_copy();
  }

  bool pinned() const { return options.device.is_cuda(); }

  std::unique_ptr<Job> make_job(int64_t number) {
    auto job = std::make_unique<Job>();
    Batch& b = job->batch;
    b.epoch = number / batches;
    b.index = number % batches;
    b.indices = sampler.batch(b.epoch, b.index);
    job->rows = job->open = b.size();
    job->unreadable.resize(size_t(job->rows));
    const TransformOptions& t = transform.options();
    Shape images{job->rows, t.channels, t.size, t.size}, labels{job->rows};
    b.images = pinned() ? empty_pinned(images, DType::f32) : empty(images);
    b.labels = pinned() ? empty_pinned(labels, DType::i64) : empty(labels, {DType::i64, kCPU});
    return job;
  }

  /// Rows [begin, end) of a job. Runs without the lock.
  void make_rows(Job& job, int64_t begin, int64_t end, std::exception_ptr& error, int64_t& error_row) {
    Batch& b = job.batch;
    auto* images = b.images.data<float>();
    auto* labels = b.labels.data<int64_t>();
    uint64_t key = hash_name(hash_name(options.seed, "data.augment"), std::to_string(b.epoch));
    for (int64_t row = begin; row < end; ++row) {
      int64_t index = b.indices[size_t(row)];
      try {
        Rng rng(key, uint64_t(index));
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
      if (count > 0) {
        b.images = keep_rows(b.images, keep, count, pinned());
        b.labels = keep_rows(b.labels, keep, count, pinned());
      }
      std::vector<int64_t> indices;
      for (size_t row = 0; row < keep.size(); ++row)
        if (keep[row])
          indices.push_back(b.indices[row]);
        else
          job.skipped[b.indices[row]] = job.unreadable[row];
      b.indices = std::move(indices);
    }
    if (!options.mix.active() || count == 0) return;
    int64_t c = transform.options().channels, s = transform.options().size;
    Rng rng(hash_name(hash_name(options.seed, "data.mix"), std::to_string(b.epoch)), uint64_t(b.index));
    MixPlan plan = draw_mix(options.mix, s, s, rng);
    Shape shape{count, options.classes};
    b.targets = pinned() ? empty_pinned(shape, DType::f32) : empty(shape);
    mix_images(b.images.data<float>(), count, c, s, s, plan);
    mix_targets(b.labels.data<int64_t>(), count, options.classes, plan, b.targets.data<float>());
  }

  /// A job with rows left to hand out, made if there is room; null when there is nothing to do now. Under the
  /// lock.
  Job* open_job() {
    for (auto& job : jobs)
      if (job->taken < job->rows) return job.get();
    int64_t next = first_job + int64_t(jobs.size());
    if (next >= end_job || int64_t(jobs.size()) >= options.prefetch) return nullptr;
    jobs.push_back(make_job(next));
    return jobs.back().get();
  }

  /// Makes one chunk of rows if any is to be made. Called and returns under the lock.
  bool work_once(std::unique_lock<std::mutex>& lock) {
    Job* job = open_job();
    if (!job) return false;
    int64_t begin = job->taken, end = std::min(begin + kChunk, job->rows);
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

  /// The batch at `state` when it is ready, or after waiting; moves `state` past it. Nothing at the end of an
  /// epoch.
  std::optional<Batch> take(bool wait) {
    std::unique_lock lock(mutex);
    while (state.batch < batches && state.epoch < options.epochs) {
      int64_t number = state.epoch * batches + state.batch;
      OCCAM_ASSERT(number == first_job);
      auto ready = [&] { return !jobs.empty() && jobs.front()->open == 0; };
      while (!ready()) {
        if (!wait) return std::nullopt;
        if (options.workers > 0)
          done.wait(lock);
        else
          work_once(lock);
      }
      if (jobs.front()->error) {
        if (!wait) return std::nullopt;
        std::rethrow_exception(jobs.front()->error);
      }
      std::unique_ptr<Job> job = std::move(jobs.front());
      jobs.pop_front();
      ++first_job;
      work.notify_all();
      ++state.batch;
      skipped.insert(job->skipped.begin(), job->skipped.end());
      if (job->batch.size() > 0) return std::move(job->batch);
    }
    return std::nullopt;
  }

#if OCCAM_CUDA
  Tensor upload(const Tensor& host) const {
    if (!host) return host;
    // Memory of the compute stream, so that whoever frees it orders its reuse; the copy waits for its last
    // user.
    Tensor out = empty(host.shape(), {host.dtype(), options.device});
    Stream copy = stream_of(options.device, StreamRole::copy);
    stream_wait(copy, current_stream(options.device));
    cuda::memcpy_async(out.data_ptr(), host.data_ptr(), size_t(host.numel()) * size_of(host.dtype()),
                       copy.handle);
    return out;
  }
  void wait_for_copy() const { cuda::synchronize_stream(stream_of(options.device, StreamRole::copy).handle); }
#else
  Tensor upload(const Tensor& host) const { return host; }
  void wait_for_copy() const {}
#endif

  void stage(Batch batch) {
    staged_source = std::move(batch);
    staged = staged_source;
    staged->images = upload(staged_source.images);
    staged->labels = upload(staged_source.labels);
    staged->targets = upload(staged_source.targets);
  }

  std::optional<Batch> next() {
    if (state.epoch >= options.epochs) return std::nullopt;
    std::optional<Batch> out;
    if (options.device.is_cpu()) {
      out = take(true);
    } else {
      if (!staged)
        if (std::optional<Batch> first = take(true)) stage(std::move(*first));
      if (staged) {
        // The host gets at most one step ahead of the device here; then the page-locked memory is free again.
        wait_for_copy();
        out = std::exchange(staged, std::nullopt);
        staged_source = {};
        if (std::optional<Batch> ahead = take(false)) stage(std::move(*ahead));
      }
    }
    if (!out) state = {state.epoch + 1, 0};
    return out;
  }
};

Loader::Loader(DatasetPtr data, Transform transform, LoaderOptions options)
    : impl_(std::make_unique<Impl>(std::move(data), std::move(transform), std::move(options))) {}
Loader::~Loader() = default;

std::optional<Batch> Loader::next() { return impl_->next(); }

LoaderState Loader::state() const {
  if (impl_->staged) return {impl_->staged->epoch, impl_->staged->index};
  return impl_->state;
}

int64_t Loader::batches_per_epoch() const { return impl_->batches; }
const std::map<int64_t, std::string>& Loader::skipped() const { return impl_->skipped; }

}  // namespace occam
