"""Encoding models of each voxel, from target spaces: the stage, and its workers."""
