"""DICOM ECGs, written by pydicom."""

import struct


def shorts(values):
    return struct.pack(f"<{len(values)}h", *values)


def dicom(path, values, labels=("2:1", "2:2"), units="uV", syntax="1.2.840.10008.1.2.1", **channel):
    from pydicom.dataset import Dataset, FileMetaDataset

    def code(value, scheme):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "Lead"
        return [item]

    group = Dataset()
    group.WaveformOriginality, group.NumberOfWaveformChannels = "ORIGINAL", len(labels)
    group.NumberOfWaveformSamples, group.SamplingFrequency = len(values), "257.5"
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.add_new(0x5400100A, "OW", shorts([-32768]))
    group.ChannelDefinitionSequence = []
    for label in labels:
        item = Dataset()
        item.ChannelSourceSequence = code(label, "MDC")
        item.ChannelSensitivity, item.ChannelSensitivityCorrectionFactor, item.ChannelBaseline = "0.5", "2", "100"
        item.ChannelSensitivityUnitsSequence = code(units, "UCUM")
        for key, value in channel.items():
            setattr(item, key, value)
        group.ChannelDefinitionSequence.append(item)
    group.WaveformData = shorts([v for row in values for v in row])
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.PatientName, data.PatientID, data.PatientSex, data.PatientAge = "ROE^JANE", "D1", "F", "071Y"
    data.PatientBirthDate = "19500203"
    data.WaveformSequence = [group]
    data.save_as(path, enforce_file_format=True)
