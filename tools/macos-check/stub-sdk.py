#!/usr/bin/env python3
"""Writes a stub of the macOS SDK: `.tbd` files that name what the frameworks export. Usage: stub-sdk.py FOLDER

The lists are what the program may import. A symbol that is missing here fails the link, as one that is missing
in the real framework would: add it only when Apple's documentation or headers have it.
What comes from libSystem is not listed, zig knows it.
"""

import json
import pathlib
import sys

FRAMEWORKS = {
    "CoreFoundation": ("A", """
        CFArrayCreate CFDataCreate CFDateCreate CFErrorCopyDescription CFErrorGetCode CFRelease CFRetain
        CFStringCreateWithBytes CFStringGetBytes CFStringGetCStringPtr CFStringGetLength
        kCFAbsoluteTimeIntervalSince1970 kCFAllocatorDefault kCFTypeArrayCallBacks
    """),
    "Foundation": ("C", ""),
    "Metal": ("A", "MTLCreateSystemDefaultDevice MTLCopyAllDevices"),
    "Security": ("A", """
        SecCertificateCopySubjectSummary SecCertificateCreateWithData SecCopyErrorMessageString SecPolicyCreateSSL
        SecTrustCreateWithCertificates SecTrustEvaluateWithError SecTrustSetAnchorCertificates
        SecTrustSetAnchorCertificatesOnly SecTrustSetOCSPResponse SecTrustSetVerifyDate
    """),
}

LIBRARIES = {
    "libobjc": ("/usr/lib/libobjc.A.dylib", """
        class_addIvar class_addMethod class_addProtocol class_conformsToProtocol class_copyIvarList
        class_copyMethodList class_copyProtocolList class_createInstance class_getClassMethod class_getInstanceMethod
        class_getInstanceSize class_getInstanceVariable class_getName class_getSuperclass class_isMetaClass
        class_replaceMethod class_respondsToSelector
        ivar_getName ivar_getOffset ivar_getTypeEncoding
        method_copyArgumentType method_copyReturnType method_exchangeImplementations method_getImplementation
        method_getName method_getNumberOfArguments method_getTypeEncoding method_setImplementation
        objc_alloc objc_alloc_init objc_allocWithZone objc_allocateClassPair objc_allocateProtocol objc_autorelease
        objc_autoreleasePoolPop objc_autoreleasePoolPush objc_autoreleaseReturnValue objc_begin_catch
        objc_copyClassList objc_copyProtocolList objc_copyWeak objc_destroyWeak objc_disposeClassPair objc_end_catch
        objc_exception_rethrow objc_exception_throw objc_getAssociatedObject objc_getClass objc_getProtocol
        objc_initWeak objc_loadWeakRetained objc_lookUpClass objc_moveWeak objc_msgSend objc_msgSendSuper
        objc_opt_class objc_opt_isKindOfClass objc_opt_new objc_opt_respondsToSelector objc_opt_self
        objc_registerClassPair objc_registerProtocol objc_release objc_retain objc_retainAutorelease
        objc_retainAutoreleaseReturnValue objc_retainAutoreleasedReturnValue objc_setAssociatedObject
        objc_storeStrong objc_storeWeak objc_sync_enter objc_sync_exit
        object_getClass object_getClassName object_getIvar object_setClass object_setIvar
        sel_getName sel_isEqual sel_registerName
    """),
    "libiconv": ("/usr/lib/libiconv.2.dylib", ""),
}


def tbd(install_name: str, symbols: str) -> str:
    names = ", ".join(f"'_{name}'" for name in symbols.split())
    return f"""--- !tapi-tbd
tbd-version:     4
targets:         [ arm64-macos ]
install-name:    '{install_name}'
current-version: 1
exports:
  - targets:     [ arm64-macos ]
    symbols:     [ {names} ]
...
"""


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main() -> None:
    sdk = pathlib.Path(sys.argv[1])
    for name, (version, symbols) in FRAMEWORKS.items():
        install_name = f"/System/Library/Frameworks/{name}.framework/Versions/{version}/{name}"
        write(sdk / f"System/Library/Frameworks/{name}.framework/{name}.tbd", tbd(install_name, symbols))
    for name, (install_name, symbols) in LIBRARIES.items():
        write(sdk / f"usr/lib/{name}.tbd", tbd(install_name, symbols))
    settings = {"CanonicalName": "macosx15.0", "Version": "15.0", "MaximumDeploymentTarget": "15.0.99"}
    write(sdk / "SDKSettings.json", json.dumps(settings))


main()
