// The C face of Gloo's TCP transport: contexts, and transfers that can be waited for and woken. Every exception ends here, as a
// message; nothing of the project's logic is in this file.

#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace {

// A table that Rust keeps: `set` stores, `get` waits for a key and calls back with its value.
struct StoreCalls {
  void* table;
  int (*set)(void* table, const char* key, const char* value, size_t len);
  int (*get)(void* table, const char* key, void (*put)(void* to, const char* value, size_t len), void* to);
};

class RustStore : public gloo::rendezvous::Store {
 public:
  explicit RustStore(const StoreCalls& calls) : calls_(calls) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    if (calls_.set(calls_.table, key.c_str(), data.data(), data.size()) != 0) {
      throw std::runtime_error("the rendezvous store refused a key");
    }
  }

  std::vector<char> get(const std::string& key) override {
    std::vector<char> value;
    auto put = [](void* to, const char* data, size_t len) {
      static_cast<std::vector<char>*>(to)->assign(data, data + len);
    };
    if (calls_.get(calls_.table, key.c_str(), put, &value) != 0) {
      throw std::runtime_error("a rank did not publish its addresses");
    }
    return value;
  }

  // `get` waits.
  void wait(const std::vector<std::string>&) override {}
  void wait(const std::vector<std::string>&, const std::chrono::milliseconds&) override {}

 private:
  StoreCalls calls_;
};

void explain(const char* what, char* message, size_t capacity) {
  if (capacity > 0) {
    std::strncpy(message, what, capacity - 1);
    message[capacity - 1] = 0;
  }
}

template <typename T, typename F>
T guarded(T failed, char* message, size_t capacity, F body) {
  try {
    return body();
  } catch (const std::exception& e) {
    explain(e.what(), message, capacity);
  } catch (...) {
    explain("an unknown exception", message, capacity);
  }
  return failed;
}

} // namespace

extern "C" {

void* phalanx_gloo_context(
    int rank, int size, const char* address, int64_t timeout_ms, const StoreCalls* calls,
    char* message, size_t capacity) {
  return guarded<void*>(nullptr, message, capacity, [&]() -> void* {
    auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr(address));
    auto context = std::make_unique<gloo::rendezvous::Context>(rank, size);
    context->setTimeout(std::chrono::milliseconds(timeout_ms));
    RustStore store(*calls);
    context->connectFullMesh(store, device);
    return context.release();
  });
}

void phalanx_gloo_context_free(void* context) {
  char message[1];
  guarded<int>(0, message, 0, [&] {
    delete static_cast<gloo::rendezvous::Context*>(context);
    return 0;
  });
}

void* phalanx_gloo_post(
    void* context, int receives, void* data, size_t len, int peer, uint64_t slot, char* message, size_t capacity) {
  return guarded<void*>(nullptr, message, capacity, [&]() -> void* {
    auto transfer = static_cast<gloo::rendezvous::Context*>(context)->createUnboundBuffer(data, len);
    if (receives) {
      transfer->recv(peer, slot, 0, len);
    } else {
      transfer->send(peer, slot, 0, len);
    }
    return transfer.release();
  });
}

// 1: done; 0: woken; -1: failed, as the message says. The timeout never passes: when one does, Gloo closes all
// connections of the context.
int phalanx_gloo_wait(void* transfer, int receives, char* message, size_t capacity) {
  return guarded<int>(-1, message, capacity, [&] {
    auto buffer = static_cast<gloo::transport::UnboundBuffer*>(transfer);
    const std::chrono::milliseconds never = std::chrono::hours(24 * 365);
    return (receives ? buffer->waitRecv(nullptr, never) : buffer->waitSend(nullptr, never)) ? 1 : 0;
  });
}

void phalanx_gloo_wake(void* transfer, int receives) {
  auto buffer = static_cast<gloo::transport::UnboundBuffer*>(transfer);
  if (receives) {
    buffer->abortWaitRecv();
  } else {
    buffer->abortWaitSend();
  }
}

void phalanx_gloo_transfer_free(void* transfer) {
  delete static_cast<gloo::transport::UnboundBuffer*>(transfer);
}

} // extern "C"
