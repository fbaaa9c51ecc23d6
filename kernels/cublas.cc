#include "kernels/cublas.h"

#include <dlfcn.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sinq::kernels {
namespace {

// The library with its table.
class LoadedCublas {
 public:
  explicit LoadedCublas(void* library) : library_(library) {}
  ~LoadedCublas() { dlclose(library_); }
  LoadedCublas(const LoadedCublas&) = delete;
  LoadedCublas& operator=(const LoadedCublas&) = delete;

  // False with the name of the first function that is missing.
  bool Fill(std::string* missing) {
    return Find("cublasCreate_v2", table.create, missing) &&
           Find("cublasDestroy_v2", table.destroy, missing) &&
           Find("cublasSetStream_v2", table.set_stream, missing) &&
           Find("cublasSetMathMode", table.set_math_mode, missing) &&
           Find("cublasSetAtomicsMode", table.set_atomics_mode, missing) &&
           Find("cublasSetWorkspace_v2", table.set_workspace, missing) &&
           Find("cublasSgemm_v2", table.sgemm, missing);
  }

  CublasTable table;

 private:
  template <class Function>
  bool Find(const char* name, Function& function, std::string* missing) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function == nullptr) *missing = name;
    return function != nullptr;
  }

  void* const library_;
};

std::vector<std::string> Candidates(const std::string& directory) {
  std::vector<std::string> folders = {directory + "/"};
  if (directory.empty()) folders = {"", "/usr/local/cuda/lib64/"};
  std::vector<std::string> candidates;
  for (const std::string& folder : folders) {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"})
      candidates.push_back(absl::StrCat(folder, name));
  }
  return candidates;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const CublasTable>> LoadCublas(const std::string& directory) {
  std::vector<std::string> reasons;
  for (const std::string& path : Candidates(directory)) {
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const error = dlerror();
      reasons.push_back(error == nullptr ? path : error);
      continue;
    }
    auto loaded = std::make_shared<LoadedCublas>(library);
    std::string missing;
    if (loaded->Fill(&missing)) return std::shared_ptr<const CublasTable>(loaded, &loaded->table);
    reasons.push_back(absl::StrCat(path, " has no ", missing));
  }
  return absl::NotFoundError(absl::StrCat("cuBLAS was not found, so that output errors are not ",
                                          "measured on a device: ", absl::StrJoin(reasons, "; ")));
}

}  // namespace sinq::kernels
