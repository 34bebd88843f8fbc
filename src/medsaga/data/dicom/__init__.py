"""What hospitals have: DICOM images in, DICOM segmentations and structure sets in and out.

``reading`` opens files within bounds; ``series`` finds the images and lets the user choose; ``geometry`` puts the
slices in space; ``decoding`` and ``pixels`` read the voxels. No name, identity, date or UID of
a patient reaches a message.
"""
