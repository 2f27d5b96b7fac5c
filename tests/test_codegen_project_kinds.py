"""Zephyr modules, Arduino and PlatformIO libraries: their files, and what they build.

The tools themselves are not here, so their files are held against the published rules, and sources and
examples are built for this machine as the files say, with stand-ins for the calls into each system.
"""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest
import yaml

import mplan
from mplan.codegen.bundle import load_manifest
from mplan.codegen.project import PROJECTS, emit_project
from mplan.runtime.device import run_bundle
from mplan.targets.load import load_target
from tests.c_nets import net
from tests.project_support import built, project, put, sh

SHIFTS = pytest.mark.parametrize("shift", [0.0, 0.5], ids=["right", "wrong"])


def says(shift: float) -> str:
    return "net: FAILED" if shift else "net: passed"


def run(folder: Path, *command: str) -> str:
    done = sh(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", sorted(PROJECTS))
def test_every_kind_keeps_the_emitted_files_and_runs_in_the_emulator(tmp_path: Path, kind: str):
    model, inputs, _ = net("dense")
    compiled = mplan.compile(model, inputs, target="stm32f746", out=tmp_path, name="net", project=kind)
    assert {Path(f).name for f in compiled.files} >= {"net.c", "net.h", "net_selftest.c"}
    assert {Path(s).name for s in load_manifest(tmp_path).sources} == {"net.c", "net_weights.c"}
    assert run_bundle(tmp_path).outputs_match


@pytest.mark.parametrize("kind", sorted(PROJECTS))
def test_every_kind_works_without_golden_data(kind: str):
    files = {"net.c": "c", "net.h": "h"}
    made = emit_project(kind, "net", load_target("stm32f746"), files)
    assert {Path(f).name: text for f, text in made.items() if f.endswith(".h")} == {"net.h": "h"}
    assert "c" in {str(text)[-1:] for f, text in made.items() if Path(f).name == "net.c"}
    assert not any("selftest" in text.lower() for text in made if text != "link.ld")


# ---- Zephyr ----

ZEPHYR = """
function(zephyr_library_named name)
  add_library(${name} STATIC)
  set(ZEPHYR_CURRENT_LIBRARY ${name} PARENT_SCOPE)
  target_link_libraries(app PRIVATE ${name} m)
endfunction()
function(zephyr_library_sources)
  target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_library_compile_options)
  target_compile_options(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_library_compile_definitions)
  target_compile_definitions(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_include_directories)
  include_directories(${ARGN})
  target_include_directories(app PRIVATE ${ARGN})
endfunction()
enable_language(C)
file(STRINGS prj.conf settings)
foreach(setting IN LISTS settings)
  if(setting MATCHES "^(CONFIG_[A-Z0-9_]+)=\\"?([^\\"]*)\\"?$")
    set(${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
  endif()
endforeach()
add_executable(app)
target_include_directories(app PRIVATE ${CMAKE_CURRENT_LIST_DIR}/include)
foreach(module IN LISTS ZEPHYR_EXTRA_MODULES)
  add_subdirectory(${module}/zephyr module)
endforeach()
"""
KERNEL = """
#include <stdint.h>
#include <stdio.h>
#define printk printf
static inline uint32_t k_cycle_get_32(void) { return 7; }
"""


def zephyr(folder: Path) -> Path:
    """Stand-ins for the commands and calls of Zephyr that modules use."""
    return put(
        folder / "zephyr-base",
        {
            "ZephyrConfig.cmake": ZEPHYR,
            "include/zephyr/kernel.h": KERNEL,
            "include/zephyr/sys/printk.h": "",
        },
    )


@SHIFTS
def test_the_zephyr_module_and_its_sample_build(tmp_path: Path, shift: float):
    sample = project(tmp_path / "module", "nrf52840", shift, "zephyr") / "samples/selftest"
    built(sample, f"-DZephyr_DIR={zephyr(tmp_path)}")
    assert says(shift) in run(sample, "build/app")


def test_zephyr_options_place_the_arena_and_the_weights(tmp_path: Path):
    sample = project(tmp_path / "module", "nrf52840", 0.0, "zephyr") / "samples/selftest"
    with (sample / "prj.conf").open("a") as file:
        file.write('CONFIG_MPLAN_NET_ARENA_SECTION=".fast"\nCONFIG_MPLAN_NET_WEIGHTS_SECTION=".slow"\n')
    built(sample, f"-DZephyr_DIR={zephyr(tmp_path)}")
    symbols = run(sample, "objdump", "-t", "build/app")
    assert re.search(r"\.fast\s.*net_arena", symbols) and re.search(r"\.slow\s.*net_weights", symbols)
    assert says(0) in run(sample, "build/app")


def test_zephyr_builds_nothing_unless_it_is_turned_on(tmp_path: Path):
    module = project(tmp_path / "module", "nrf52840", 0.0, "zephyr")
    put(tmp_path, {"prj.conf": "", "main.c": "int main(void) { return 0; }\n"})
    lists = (
        "cmake_minimum_required(VERSION 3.20.0)\n"
        f"set(ZEPHYR_EXTRA_MODULES {module})\nfind_package(Zephyr REQUIRED)\n"
        "project(none C)\ntarget_sources(app PRIVATE main.c)\n"
    )
    put(tmp_path, {"CMakeLists.txt": lists})
    built(tmp_path, f"-DZephyr_DIR={zephyr(tmp_path)}")
    assert not list(tmp_path.rglob("libmplan_net.a"))


def test_the_zephyr_metadata_follow_the_schema(tmp_path: Path):
    folder = project(tmp_path, "nrf52840", 0.0, "zephyr")
    module = yaml.safe_load((folder / "zephyr/module.yml").read_text())
    assert set(module) <= {"name", "build", "samples", "tests", "boards", "blobs"}
    assert re.fullmatch(r"[A-Za-z0-9_-]+", module["name"])
    assert (folder / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    kconfig = (folder / module["build"]["kconfig"]).read_text()
    (samples,) = module["samples"]
    (sample,) = (folder / samples).rglob("sample.yaml")
    test = yaml.safe_load(sample.read_text())["tests"]["mplan.net.selftest"]
    assert test["harness_config"]["regex"] == ["net: passed"]
    defined = set(re.findall(r"^config (\w+)$", kconfig, re.MULTILINE))
    text = (folder / "zephyr/CMakeLists.txt").read_text() + sample.with_name("prj.conf").read_text()
    text = text.replace("${place}", "ARENA") + text.replace("${place}", "WEIGHTS")
    used = set(re.findall(r"CONFIG_(MPLAN\w*)", text))
    assert used == defined == {"MPLAN_NET", "MPLAN_NET_ARENA_SECTION", "MPLAN_NET_WEIGHTS_SECTION"}
    assert kconfig.count("\nif ") == kconfig.count("\nendif")


# ---- Arduino ----

ARDUINO = """
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
static unsigned long micros(void) { static unsigned long now; return now += 42; }
static void delay(int ms) { exit(ms == 0); }
static void begin(long baud) { printf("%ld baud\\n", baud); }
static void print(unsigned long value) { printf("%lu", value); }
static void println(const char *text) { puts(text); }
static const struct {
    void (*begin)(long), (*print)(unsigned long), (*println)(const char *);
} Serial = {begin, print, println};
void setup(void);
void loop(void);
int main(void) { setup(); for (;;) loop(); }
"""
CATEGORIES = {
    *("Display", "Communication", "Signal Input/Output", "Sensors", "Device Control", "Timing"),
    *("Data Storage", "Data Processing", "Other"),
}


def properties(folder: Path) -> dict[str, str]:
    lines = (folder / "library.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@SHIFTS
def test_the_arduino_sketch_runs_with_the_sources_of_the_library(tmp_path: Path, shift: float):
    folder = project(tmp_path / "library", "stm32f746", shift, "arduino")
    for source in sorted((folder / "src").glob("*.c")):  # as the core compiles: no flags of ours
        run(tmp_path, "cc", "-Os", "-Wall", "-Werror", "-I", str(folder / "src"), "-c", str(source))
    (sketch,) = folder.glob("examples/*/*.ino")
    assert sketch.stem == sketch.parent.name
    put(tmp_path, {"Arduino.h": ARDUINO, "sketch.c": sketch.read_text()})  # also valid as C
    objects = sorted(p.name for p in tmp_path.glob("*.o"))
    options = ("-include", "Arduino.h", "-I", str(folder / "src"))
    run(tmp_path, "cc", *options, "sketch.c", *objects, "-lm", "-o", "app")
    assert run(tmp_path, "./app").splitlines() == ["115200 baud", "42 us per inference", says(shift)]


@pytest.mark.parametrize("name", ["net", "arduino_net", "n" * 80])
def test_the_arduino_metadata_follow_the_specification(tmp_path: Path, name: str):
    folder = project(tmp_path, "stm32f746", 0.0, "arduino", name)
    fields = properties(folder)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url"}
    assert required <= set(fields) and all(fields.values())
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9 _.-]{0,62}", fields["name"])
    assert not fields["name"].lower().startswith("arduino")
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"])
    assert fields["category"] in CATEGORIES
    assert re.fullmatch(r"https?://[\w./-]+", fields["url"])
    assert not fields["paragraph"].startswith(fields["sentence"])
    assert (folder / "src" / fields["includes"]).is_file()


# ---- PlatformIO ----


@SHIFTS
def test_the_platformio_example_runs_with_the_flags_of_the_library(tmp_path: Path, shift: float):
    folder = project(tmp_path, "stm32f746", shift, "platformio")
    manifest = json.loads((folder / "library.json").read_text())
    (example,) = manifest["examples"]
    base = folder / example["base"]
    assert all((base / file).is_file() for file in example["files"])
    ini = configparser.ConfigParser()
    ini.read(base / "platformio.ini")
    env = ini["env:native"]
    assert env["platform"] == "native"
    scheme, _, link = env["lib_deps"].partition("://")
    assert scheme == "symlink" and (base / link).resolve() == folder.resolve()
    sources = folder / manifest["build"]["srcDir"]
    assert (sources / manifest["headers"]).is_file()
    files = [*sorted(sources.glob("*.c")), base / "src/main.c"]
    run(
        base,
        "cc",
        "-Werror",
        *manifest["build"]["flags"],
        "-I",
        str(sources),
        *map(str, files),
        *env["build_flags"].split(),
        "-o",
        "app",
    )
    done = sh(base, "./app")
    assert (says(shift) in done.stdout, done.returncode) == (True, bool(shift))


def test_the_platformio_manifest_follows_its_schema(tmp_path: Path):
    manifest = json.loads(
        (project(tmp_path, "stm32f746", 0.0, "platformio") / "library.json").read_text()
    )
    assert re.fullmatch(r"[^:;/,@<>]{1,100}", manifest["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"])
    assert 1 <= len(manifest["description"]) <= 1000
    assert all(re.fullmatch(r"[a-z\d\-+. ]{1,50}", word) for word in manifest["keywords"])
    assert manifest["platforms"] == manifest["frameworks"] == "*"
    assert all(1 <= len(author["name"]) <= 50 for author in manifest["authors"])
