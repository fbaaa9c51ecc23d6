# The CUDA compiler, of an installed toolkit or of PyPI's wheels (deploy/quickstart.sh --cuda), and how a .cu becomes
# an object. CMake's own CUDA language is not used: it wants a toolkit in one piece, which the wheels are not.
#   in:  SINQ_CUDA  AUTO (where nvcc is found), ON (an error where it is not), OFF
#   out: SINQ_NVCC (empty: no CUDA), SINQ_CUDA_INCLUDE, SINQ_CUDART
set(SINQ_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (where nvcc is found), ON, OFF")
set_property(CACHE SINQ_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SINQ_CUDA_ARCHITECTURES 80 86 89 90 100 CACHE STRING
    "Compute capabilities that get machine code, oldest first; later devices translate the code of the last one")
set(SINQ_NVCC)
if(NOT SINQ_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SINQ_CUDA=${SINQ_CUDA} is none of AUTO, ON, OFF")
endif()
if(SINQ_CUDA STREQUAL OFF)
  return()
endif()

file(GLOB wheel_folders ${CMAKE_SOURCE_DIR}/build/cuda-toolkit/lib/python3*/site-packages/nvidia/cu13/bin)
find_program(SINQ_NVCC_PROGRAM nvcc PATHS /usr/local/cuda/bin ${wheel_folders} DOC "The CUDA compiler")
if(NOT SINQ_NVCC_PROGRAM)
  if(SINQ_CUDA STREQUAL ON)
    message(FATAL_ERROR "SINQ_CUDA=ON, but there is no nvcc in PATH, /usr/local/cuda or build/cuda-toolkit; "
                        "deploy/quickstart.sh --cuda installs one")
  endif()
  message(STATUS "CUDA backend: off (no nvcc)")
  return()
endif()

# nvcc may be a script that calls another one; its dry run names the folder of the toolkit.
execute_process(COMMAND ${SINQ_NVCC_PROGRAM} --dryrun -E -x cu /dev/null OUTPUT_QUIET ERROR_VARIABLE dry_run
                RESULT_VARIABLE dry_run_result)
string(REGEX MATCH "TOP=([^\n]+)" _ "${dry_run}")
get_filename_component(toolkit "${CMAKE_MATCH_1}" REALPATH)
find_path(SINQ_CUDA_INCLUDE cuda_runtime_api.h PATHS ${toolkit}/include ${toolkit}/targets/x86_64-linux/include
          NO_DEFAULT_PATH)
find_library(SINQ_CUDART cudart_static
             PATHS ${toolkit}/lib64 ${toolkit}/lib ${toolkit}/targets/x86_64-linux/lib NO_DEFAULT_PATH)
if(NOT dry_run_result EQUAL 0 OR NOT SINQ_CUDA_INCLUDE OR NOT SINQ_CUDART)
  if(SINQ_CUDA STREQUAL ON)
    message(FATAL_ERROR "SINQ_CUDA=ON, but the toolkit of ${SINQ_NVCC_PROGRAM} (${toolkit}) lacks "
                        "cuda_runtime_api.h or libcudart_static.a")
  endif()
  message(STATUS "CUDA backend: off (the toolkit of ${SINQ_NVCC_PROGRAM} is incomplete)")
  return()
endif()
set(SINQ_NVCC ${SINQ_NVCC_PROGRAM})
message(STATUS "CUDA backend: on (${SINQ_NVCC}, compute capabilities ${SINQ_CUDA_ARCHITECTURES})")

set(SINQ_NVCC_OPTIONS -std=c++20 -O3 -I${CMAKE_SOURCE_DIR} --threads 2
    # Device code calls the constexpr functions that it shares with the host.
    --expt-relaxed-constexpr
    # The same bytes as on the CPU (kernels/README.md): no contraction, no flushing, exact division and square root.
    -fmad=false -ftz=false -prec-div=true -prec-sqrt=true
    -Werror=all-warnings -Xcompiler=-Wall,-Werror,-ffp-contract=off)
if(CCACHE_PROGRAM)
  set(SINQ_NVCC_LAUNCHER ${CCACHE_PROGRAM})
endif()
foreach(capability ${SINQ_CUDA_ARCHITECTURES})
  list(APPEND SINQ_NVCC_OPTIONS -gencode=arch=compute_${capability},code=sm_${capability})
  set(newest ${capability})
endforeach()
list(APPEND SINQ_NVCC_OPTIONS -gencode=arch=compute_${newest},code=compute_${newest})

# Sets `out` to the object files of the .cu files of the current folder.
function(sinq_cuda_objects out)
  set(objects)
  foreach(source ${ARGN})
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${source}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${SINQ_NVCC_LAUNCHER} ${SINQ_NVCC} ${SINQ_NVCC_OPTIONS} -MD -MF ${object}.d
              -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source} DEPFILE ${object}.d
      COMMENT "Building CUDA object ${source}.o" VERBATIM)
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    list(APPEND objects ${object})
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()
