// The service of protos/user.proto on grpc++. Each connection is closed in good order when it is 300 ms old.
//
//   user-server <name> <journal>
//
// It prints its port, and ends with its standard input. The journal gets a line for each Rename that is run: its request id.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>

#include "user.grpc.pb.h"

using namespace user::v1;
using grpc::ServerContext;
using grpc::Status;

class UserService final : public User::Service {
 public:
  UserService(std::string name, int journal) : name_(std::move(name)), journal_(journal) {}

  Status GetName(ServerContext* context, const GetNameRequest* request, GetNameReply* reply) override {
    Wait(request->delay_ms());
    reply->set_id(request->id());
    reply->set_name("user-" + std::to_string(request->id()));
    SetOrigin(context, reply->mutable_origin());
    return Status::OK;
  }

  Status Rename(ServerContext* context, const RenameRequest* request, RenameReply* reply) override {
    // In one write, so that lines do not mix, and before the client can know.
    const std::string line = request->request_id() + "\n";
    if (write(journal_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      return Status(grpc::StatusCode::INTERNAL, "The journal cannot be written.");
    }

    Wait(request->delay_ms());
    SetOrigin(context, reply->mutable_origin());
    return Status::OK;
  }

  Status ListNames(ServerContext* context, const ListNamesRequest* request, grpc::ServerWriter<NameReply>* writer) override {
    for (int id = 0; id < request->count(); id++) {
      Wait(request->delay_ms());
      NameReply reply;
      reply.set_id(id);
      reply.set_name("user-" + std::to_string(id));
      SetOrigin(context, reply.mutable_origin());
      writer->Write(reply);
    }

    return Status::OK;
  }

 private:
  static void Wait(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

  void SetOrigin(ServerContext* context, Origin* origin) const {
    origin->set_server(name_);
    origin->set_connection(context->peer());
  }

  const std::string name_;
  const int journal_;
};

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "user-server <name> <journal>\n";
    return 2;
  }

  const int journal = open(argv[2], O_WRONLY | O_APPEND | O_CREAT, 0600);
  UserService service(argv[1], journal);
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 300);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 60'000);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  if (journal < 0 || server == nullptr) {
    return 1;
  }

  std::cout << port << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
  }

  std::_Exit(0);
}
