#include "tests/kernels/cuda_driver.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/activation_search.h"  // CheckActivations
#include "kernels/cuda_outcomes.h"
#include "kernels/cuda_steps.h"
#include "kernels/kurtosis.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {
namespace {

// Stands in for device memory: aligned as there, and full of not-a-numbers.
class Piece {
 public:
  explicit Piece(size_t size_bytes)
      : data_(static_cast<std::byte*>(
            ::operator new(std::max<size_t>(size_bytes, 1), std::align_val_t{256}))) {
    std::memset(data_, 0xff, size_bytes);
  }
  ~Piece() { ::operator delete(data_, std::align_val_t{256}); }
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* const data_;
};

// Some rows and columns of a matrix, copied as an upload would: only these, with a stride of their
// own.
class Upload {
 public:
  Upload(const MatrixView& in, RowRange rows, int64_t first_col, int64_t cols)
      : piece_(static_cast<size_t>((rows.last - rows.first) * StrideOf(cols)) *
               BytesPerElement(in.dtype)) {
    const int64_t width = static_cast<int64_t>(BytesPerElement(in.dtype));
    for (int64_t i = rows.first; i < rows.last; ++i) {
      std::memcpy(piece_.data() + (i - rows.first) * StrideOf(cols) * width,
                  in.data + (i * in.cols + first_col) * width, static_cast<size_t>(cols * width));
    }
    view_.data = piece_.data();
    view_.first_row = rows.first;
    view_.rows = rows.last - rows.first;
    view_.first_col = first_col;
    view_.cols = cols;
    view_.stride = StrideOf(cols);
    view_.dtype = in.dtype;
    view_.block_scales = in.block_scales.empty() ? nullptr : in.block_scales.data();
    view_.block_scales_per_row = (in.cols + kFp8BlockSize - 1) / kFp8BlockSize;
    if (in.is_folded()) Fold(in);
  }
  const DeviceWeights& view() const { return view_; }
  int error() const { return error_; }

 private:
  static int64_t StrideOf(int64_t cols) { return cols + 16; }

  void Fold(const MatrixView& in) {
    if (!in.row_factor.empty()) view_.row_factor = in.row_factor.data();
    if (!in.column_factor.empty()) view_.column_factor = in.column_factor.data();
    folded_ = std::make_unique<Piece>(FoldedBytes(view_));
    error_ = LaunchFold(view_, folded_->data(), nullptr);
    view_ = FoldedView(view_, folded_->data());
  }

  Piece piece_;
  std::unique_ptr<Piece> folded_;
  DeviceWeights view_;
  int error_ = 0;
};

// One call of Quantize.
class Run {
 public:
  Run(const MatrixView& in, const QuantParams& params, const CudaCuts& cuts,
      absl::Span<const absl::Span<std::byte>> planes, TensorStats* stats)
      : Run(in, PlanTensor(params, in.rows, in.cols, in.dtype), cuts, planes, stats) {}
  Run(const MatrixView& in, const CudaTensor& tensor, const CudaCuts& cuts,
      absl::Span<const absl::Span<std::byte>> planes, TensorStats* stats)
      : in_(in),
        cuts_(cuts),
        planes_(planes),
        stats_(*stats),
        tensor_(tensor),
        memory_(DeviceArraysBytes(tensor_)),
        arrays_(LayOutDeviceArrays(tensor_, memory_.data())) {
    std::memset(static_cast<void*>(arrays_.summary), 0, sizeof(DeviceSummary));
  }

  absl::Status Do() {
    for (const auto step :
         {&Run::Gate, &Run::Search, &Run::Balance, &Run::Store, &Run::Encode, &Run::Sum}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Measure(Measurement& measurement) {
    if (absl::Status status = Balance(); !status.ok()) return status;
    if (absl::Status status = Check(LaunchSumScores(tensor_, arrays_, nullptr)); !status.ok())
      return status;
    measurement = {arrays_.summary->error, arrays_.summary->power};
    return absl::OkStatus();
  }

  absl::Status Measure(absl::Span<float> t) {
    if (absl::Status status = Balance(); !status.ok()) return status;
    std::copy_n(arrays_.column, t.size(), t.begin());
    return absl::OkStatus();
  }

 private:
  static absl::Status Check(int error) {
    if (error == 0) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(error, ": ", cuda_on_cpu::LastFault()));
  }
  static int64_t Cut(int64_t cut, int64_t whole) { return cut == 0 ? whole : cut; }

  absl::Status Gate() {
    if (!HasKurtosisGate(tensor_.params)) return absl::OkStatus();
    const int64_t cut = Cut(cuts_.moment_rows, in_.rows);
    for (int64_t first = 0; first < in_.rows; first += cut) {
      const RowRange rows{first, std::min(first + cut, in_.rows)};
      const Upload upload(in_, rows, 0, in_.cols);
      if (upload.error() != 0) return Check(upload.error());
      const Piece workspace(MomentsBytes(rows.last - rows.first));
      if (absl::Status status = Check(
              LaunchMoments(tensor_, upload.view(), arrays_, workspace.data(), nullptr));
          !status.ok())
        return status;
    }
    stats_.kurtosis = KurtosisOfSums(arrays_.summary->moments, in_.rows, in_.cols);
    if (!std::isfinite(stats_.kurtosis)) return FirstNonFinite(in_, 0);
    if (stats_.kurtosis <= kKurtosisGate) return absl::OkStatus();
    stats_.kurtosis_gate_closed = true;
    QuantParams rtn = tensor_.params;
    rtn.method = Method::kRtn;
    tensor_ = PlanTensor(rtn, in_.rows, in_.cols, in_.dtype);
    return absl::OkStatus();
  }

  absl::Status Search() {
    if (!tensor_.has_candidates) return absl::OkStatus();
    if (absl::Status status = CheckActivations(in_); !status.ok()) return status;
    const ActivationView& given = *in_.activations;
    const bool moments = given.samples.empty();
    const absl::Span<const float> values = moments ? given.second_moments : given.samples;
    // As the device has it: aligned, and an allocation of its own.
    const Piece copy(values.size() * sizeof(float));
    std::memcpy(copy.data(), values.data(), values.size() * sizeof(float));
    const DeviceInputs inputs{reinterpret_cast<const float*>(copy.data()),
                              moments ? in_.cols : given.tokens, moments};
    absl::Status status = NoteTiles();
    if (status.ok()) status = Check(LaunchCandidates(tensor_, inputs, arrays_, nullptr));
    if (status.ok()) status = SearchRows(inputs);
    if (status.ok()) status = Check(LaunchChooseFactor(tensor_, arrays_, nullptr));
    return status;
  }

  absl::Status NoteTiles() {
    const CudaTensor search = SearchTensorOf(tensor_);
    const int64_t cut = Cut(cuts_.tiles, search.tiles);
    for (int64_t first = 0; first < search.tiles; first += cut) {
      const TilePanel panel{first, std::min(cut, search.tiles - first)};
      const PanelExtent extent = ExtentOf(search, panel);
      const Upload upload(in_, extent.rows, extent.first_col, extent.cols);
      const Piece workspace(PanelBytes(search, panel.tiles));
      absl::Status status = Check(upload.error());
      for (const auto launch : {LaunchBalance, LaunchNoteTiles}) {
        if (status.ok()) {
          status =
              Check(launch(search, upload.view(), panel, arrays_, workspace.data(), nullptr));
        }
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status SearchRows(const DeviceInputs& inputs) {
    const int64_t cut = cuts_.tiles == 0 ? in_.rows : 32 * cuts_.tiles;
    for (int64_t first = 0; first < in_.rows; first += cut) {
      const Upload upload(in_, {first, std::min(first + cut, in_.rows)}, 0, in_.cols);
      absl::Status status = Check(upload.error());
      if (status.ok())
        status = Check(LaunchSearch(tensor_, upload.view(), inputs, arrays_, nullptr));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Balance() {
    const int64_t cut = Cut(cuts_.tiles, tensor_.tiles);
    for (int64_t first = 0; first < tensor_.tiles; first += cut) {
      const TilePanel panel{first, std::min(cut, tensor_.tiles - first)};
      const PanelExtent extent = ExtentOf(tensor_, panel);
      const Upload upload(in_, extent.rows, extent.first_col, extent.cols);
      const Piece workspace(PanelBytes(tensor_, panel.tiles));
      absl::Status status = Check(upload.error());
      if (!status.ok()) return status;
      status = Check(
          LaunchBalance(tensor_, upload.view(), panel, arrays_, workspace.data(), nullptr));
      if (status.ok() && tensor_.has_candidates) {
        status =
            Check(LaunchScaleColumns(tensor_, panel, arrays_, workspace.data(), nullptr));
      }
      const auto fit = tensor_.measures_errors ? LaunchScore : LaunchFit;
      if (status.ok() && (tensor_.measures_errors || !planes_.empty()))
        status = Check(fit(tensor_, upload.view(), panel, arrays_, workspace.data(), nullptr));
      if (!status.ok()) return status;
    }
    return Collect();
  }

  absl::Status Collect() {
    const std::vector<DeviceTileOutcome> outcomes(arrays_.outcomes,
                                                  arrays_.outcomes + tensor_.tiles);
    AddOutcomes(outcomes, stats_);
    return CheckFinite(outcomes, in_);
  }

  absl::Status Store() {
    std::vector<std::unique_ptr<Piece>> pieces;
    DevicePlanes planes;
    for (size_t p = 1; p < planes_.size(); ++p) {
      pieces.push_back(std::make_unique<Piece>(planes_[p].size()));
      planes.plane[p] = pieces.back()->data();
    }
    absl::Status status = Check(LaunchStore(tensor_, arrays_, planes, nullptr));
    if (status.ok() && arrays_.summary->faults != 0)
      status = absl::InvalidArgumentError("something does not fit F16");
    if (!status.ok()) return status;
    for (size_t p = 1; p < planes_.size(); ++p)
      std::memcpy(planes_[p].data(), planes.plane[p], planes_[p].size());
    return absl::OkStatus();
  }

  absl::Status EncodeInto(int64_t first, int64_t last, const Piece& codes) {
    EncodeRange range;
    range.first = first;
    range.last = last;
    range.codes = codes.data();
    std::vector<std::unique_ptr<Upload>> uploads;
    for (int s = 0; s < PackedRowsOf(tensor_).strands; ++s) {
      uploads.push_back(std::make_unique<Upload>(
          in_, RowsOfStrand(tensor_, range.first, range.last, s), 0, in_.cols));
      if (uploads.back()->error() != 0) return Check(uploads.back()->error());
      range.strands[s] = uploads.back()->view();
    }
    return Check(LaunchEncode(tensor_, range, arrays_, nullptr));
  }

  absl::Status Encode() {
    if (IsPackedApart(tensor_)) return EncodeAndPack();
    const PackedRows packed = PackedRowsOf(tensor_);
    const int64_t cut = Cut(cuts_.packed_rows, packed.rows);
    for (int64_t first = 0; first < packed.rows; first += cut) {
      const int64_t last = std::min(first + cut, packed.rows);
      const size_t bytes = static_cast<size_t>(last - first) * packed.row_bytes;
      const Piece codes(bytes);
      if (absl::Status status = EncodeInto(first, last, codes); !status.ok()) return status;
      std::memcpy(planes_[0].data() + static_cast<size_t>(first) * packed.row_bytes, codes.data(),
                  bytes);
    }
    return absl::OkStatus();
  }

  absl::Status EncodeAndPack() {
    const int64_t cut = cuts_.packed_rows == 0 ? in_.rows : (cuts_.packed_rows + 31) / 32 * 32;
    for (int64_t first = 0; first < in_.rows; first += cut) {
      const RowRange rows{first, std::min(first + cut, in_.rows)};
      const Piece codes(static_cast<size_t>((rows.last - rows.first) * in_.cols));
      absl::Status status = EncodeInto(rows.first * tensor_.groups_per_row,
                                       rows.last * tensor_.groups_per_row, codes);
      if (!status.ok()) return status;
      const PackedPiece piece = PieceOf(tensor_, rows);
      const Piece lines(static_cast<size_t>(piece.lines) * piece.line_bytes);
      status = Check(LaunchPack(tensor_, rows, reinterpret_cast<const uint8_t*>(codes.data()),
                                arrays_, lines.data(), nullptr));
      if (!status.ok()) return status;
      for (size_t n = 0; n < static_cast<size_t>(piece.lines); ++n) {
        std::memcpy(planes_[0].data() + piece.plane_offset_bytes + n * piece.plane_pitch_bytes,
                    lines.data() + n * piece.line_bytes, piece.line_bytes);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Sum() {
    if (absl::Status status = Check(LaunchSumErrors(tensor_, arrays_, nullptr)); !status.ok())
      return status;
    SetErrorFigures(*arrays_.summary, stats_);
    return absl::OkStatus();
  }

  const MatrixView& in_;
  const CudaCuts& cuts_;
  const absl::Span<const absl::Span<std::byte>> planes_;
  TensorStats& stats_;
  CudaTensor tensor_;
  const Piece memory_;
  const DeviceArrays arrays_;
};

}  // namespace

absl::Status CudaDriver::Quantize(const MatrixView& in, const QuantParams& params,
                                  absl::Span<std::byte>,
                                  absl::Span<const absl::Span<std::byte>> planes, ParallelFor,
                                  absl::FunctionRef<bool()>, TensorStats* stats) const {
  *stats = TensorStats();
  if (absl::Status status = Validate(params); !status.ok()) return status;
  cuda_on_cpu::SetSchedule(schedule_);
  return Run(in, params, cuts_, planes, stats).Do();
}

absl::Status CudaDriver::MeasureColumns(const MatrixView& in, const QuantParams& params,
                                        absl::Span<std::byte>, absl::Span<float> t, ParallelFor,
                                        absl::FunctionRef<bool()>) const {
  cuda_on_cpu::SetSchedule(schedule_);
  TensorStats stats;
  return Run(in, PlanColumnMeasure(params, in.rows, in.cols), cuts_, {}, &stats).Measure(t);
}

absl::Status CudaDriver::MeasureErrors(const MatrixView& in,
                                       absl::Span<const QuantParams> candidates,
                                       absl::Span<std::byte>, absl::Span<Measurement> measured,
                                       ParallelFor, absl::FunctionRef<bool()>) const {
  cuda_on_cpu::SetSchedule(schedule_);
  for (size_t c = 0; c < candidates.size(); ++c) {
    TensorStats stats;
    const CudaTensor tensor = PlanErrorMeasure(candidates[c], in.rows, in.cols);
    absl::Status status = Run(in, tensor, cuts_, {}, &stats).Measure(measured[c]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace sinq::kernels
