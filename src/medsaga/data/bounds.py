"""How much the readers believe of a header: what claims more is damaged or hostile, and is refused before it is read.

Each limit lies well above what real files need and well below what would fill the memory or take minutes.
"""

from __future__ import annotations

SPACING_LIMITS_MM = (1e-6, 1e4)
"""Size of a voxel along an axis, in all formats."""

MOST_INFLATION = 1100
"""Deflate makes data at most 1032 times smaller; a file that claims more than this is damaged."""
MOST_INFLATION_OF_TIFF = 3000
"""LZW makes data at most some 2700 times smaller; a file that claims more than this is damaged."""
MOST_TRAILING_BYTES = 2**24
"""Behind the voxels, once inflated."""
CHUNK_BYTES = 2**22
"""That are read or inflated at once."""

MOST_PIXELS = 20_000 * 20_000
"""Of a picture. More than Pillow's own bound, for tissue sections; 1.2 GB in colour. What is larger is read in parts
elsewhere."""
MOST_PIXELS_PER_BYTE = {"raw": 8, "zip": 8 * MOST_INFLATION}
"""By Pillow's name of the decoder: one bit per pixel, which deflate makes at most 1032 times smaller."""
MOST_PAGES = 20_000
"""Of a TIFF file."""
MOST_EXTENSION_BYTES = 2**20
"""Of what stands behind the header of a NIfTI file."""
MOST_ITK_HEADER_BYTES, MOST_ITK_HEADER_LINES = 2**20, 20_000
"""Of NRRD and MetaImage. A segmentation of 100 segments has some 40 kB in 800 lines."""

MOST_META_ELEMENTS = 100
"""Of a DICOM file's meta information."""
MOST_DICOM_HEADER_BYTES = 2**26
MOST_DICOM_HEADER_READS = 4_000_000
"""Two or three reads make one element: room for 10,000 frames that say everything of themselves."""
MOST_INFLATED_BYTES = 2**30
"""Of a deflated DICOM file. Deflate can make a file of 1 MB out of 1 GB of zeros: no document needs more than this."""
ALWAYS_INFLATED_BYTES, MOST_INFLATION_OF_DICOM = 2**26, 200
"""An image is read several times: one that says next to nothing in a gigabyte would take minutes."""
ALWAYS_DECODED_BYTES, MOST_COMPRESSION = 2**26, 1000
"""Of a frame. An empty image compresses without limit: this much is decoded whatever its compressed size."""
MOST_MM = 1e6
"""Of a DICOM image from the origin, along an axis."""
MOST_CONTOUR_MM = 1e7
"""Of a point of a contour from the origin, along an axis."""
MOST_FILES = 100_000
"""In a folder of DICOM files, at any depth."""
