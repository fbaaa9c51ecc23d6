#include "server/rpc/grpc_server.h"

#include <grpc/support/time.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

constexpr int kKeepaliveMs = 30'000;         // a client that vanished is noticed within a minute
constexpr int kKeepaliveTimeoutMs = 20'000;  // of an unanswered ping
constexpr int kMinPingIntervalMs = 10'000;   // more frequent pings of a client are a flood

void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  builder.SetMaxSendMessageSize(static_cast<int>(kMaxMessageBytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxConcurrentStreams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(kMaxMetadataBytes));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const ListenAddress& address,
                                                              ServiceContext& context) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> out(new GrpcServer(context));
  grpc::ServerBuilder builder;
  SetLimits(builder);
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &out->port_);
  builder.RegisterService(&out->quantization_);
  builder.RegisterService(&out->tensors_);
  out->server_ = builder.BuildAndStart();
  if (out->server_ == nullptr || out->port_ == 0) {
    return MakeError(absl::StatusCode::kUnavailable, Reason::kInternal,
                     absl::StrCat("Cannot listen on ", address.ToString(),
                                  "; is another server there? Choose another --listen."));
  }
  out->ServeHealth();
  return out;
}

void GrpcServer::ServeHealth() {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("sinq.v1.QuantizationService", true);
  health->SetServingStatus("sinq.v1.TensorService", true);
  const auto set = [health](const WorkerStatus& worker) {
    health->SetServingStatus(absl::StrCat("device/", worker.name), worker.healthy);
  };
  // First the observer, so that no loss falls between; a second report changes nothing.
  workers_.SetHealthObserver(set);
  for (const WorkerStatus& worker : workers_.Workers()) set(worker);
}

GrpcServer::~GrpcServer() {
  if (server_ == nullptr) return;
  workers_.SetHealthObserver(nullptr);
  Shutdown(absl::ZeroDuration());
}

void GrpcServer::StopServing() { server_->GetHealthCheckService()->Shutdown(); }

void GrpcServer::Shutdown(absl::Duration grace) {
  server_->Shutdown(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                   gpr_time_from_millis(absl::ToInt64Milliseconds(grace), GPR_TIMESPAN)));
  server_->Wait();
  // gRPC is done with a stream a moment before the last thread that served it is. Asking again and
  // again, because whoever goes last must not touch anything that we may take down then.
  while (context_.tensor_streams > 0) absl::SleepFor(absl::Milliseconds(1));
}

}  // namespace sinq
