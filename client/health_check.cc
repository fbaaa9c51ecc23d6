#include "client/health_check.h"

#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/synchronization/notification.h"

namespace sinq::client {
namespace {

using google::protobuf::Empty;
constexpr int kServiceField = 1, kStatusField = 1;

const char* StateName(const Empty& response) {
  uint64_t value = 0;
  const auto& fields = response.GetReflection()->GetUnknownFields(response);
  for (int i = 0; i < fields.field_count(); ++i) {
    const auto& field = fields.field(i);
    if (field.number() == kStatusField &&
        field.type() == google::protobuf::UnknownField::TYPE_VARINT) {
      value = field.varint();
    }
  }
  switch (value) {
    case 1:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "UNKNOWN";
  }
}

}  // namespace

grpc::Status HealthCheck(const std::shared_ptr<grpc::Channel>& channel,
                         grpc::ClientContext* context, const std::string& service,
                         std::string* state) {
  Empty request, response;
  if (!service.empty()) {
    request.GetReflection()->MutableUnknownFields(&request)->AddLengthDelimited(kServiceField,
                                                                                service);
  }
  grpc::TemplatedGenericStub<Empty, Empty> stub(channel);
  grpc::Status result;
  absl::Notification done;
  stub.UnaryCall(context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) {
                   result = std::move(status);
                   done.Notify();
                 });
  done.WaitForNotification();
  if (result.ok()) *state = StateName(response);
  return result;
}

}  // namespace sinq::client
