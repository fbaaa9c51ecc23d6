// How a matrix is cut into tiles, and where a tile's scales lie: all rows and `group` columns (1D)
// or squares (2D), see README.md sections 2 and 8.
#ifndef SINQ_KERNELS_TILE_GRID_H_
#define SINQ_KERNELS_TILE_GRID_H_

#include <cstdint>

#include "kernels/tile_ops.h"

namespace sinq::kernels {

class TileGrid {
 public:
  TileGrid(int64_t rows, int64_t cols, int group, Tiling tiling)
      : rows_(rows), cols_(cols), group_(group), is_square_(tiling == Tiling::k2D) {}

  bool is_square() const { return is_square_; }
  int group() const { return group_; }
  int64_t groups_per_row() const { return cols_ / group_; }
  int64_t group_count() const { return rows_ * groups_per_row(); }
  int64_t tile_rows() const { return is_square_ ? group_ : rows_; }
  int64_t tile_count() const { return rows_ / tile_rows() * groups_per_row(); }
  // Length of the column scales of all tiles.
  int64_t column_count() const { return rows_ / tile_rows() * cols_; }

  TileRange Range(int64_t tile) const {
    const int64_t row = tile / groups_per_row(), column = tile % groups_per_row();
    return {row * tile_rows(), tile_rows(), column * group_, group_};
  }
  // Tiles are numbered along the rows, and so are the columns of each: in both tilings.
  int64_t FirstColumn(int64_t tile) const { return tile * group_; }
  // Group arrays are stored row by row in 1D and tile by tile in 2D: row i of a tile is at
  // FirstGroup + i * GroupStride.
  int64_t FirstGroup(int64_t tile) const { return is_square_ ? tile * group_ : tile; }
  int64_t GroupStride() const { return is_square_ ? 1 : groups_per_row(); }

 private:
  int64_t rows_, cols_;
  int group_;
  bool is_square_;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_TILE_GRID_H_
