@echo off
rem Three steps: the virtual environment, the packages, the start.
setlocal
cd /d "%~dp0"
set "CODE=1"
set "PYTHON=.venv\Scripts\python.exe"
fc /b requirements.lock .venv\requirements.lock >nul 2>&1 && if exist %PYTHON% goto start
set "FOUND=py -3"
set "CHECK=import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
%FOUND% -c "%CHECK%" >nul 2>&1 || set "FOUND=python"
%FOUND% -c "%CHECK%" >nul 2>&1 || echo qwenproxy: Python 3.11 or newer is missing, get it from https://www.python.org/downloads && goto failed
echo Installing the packages into .venv, once; this takes a minute
%FOUND% -m venv --clear .venv || goto failed
%PYTHON% -m pip --disable-pip-version-check install --require-hashes -r requirements.lock || goto failed
%PYTHON% -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable . || goto failed
copy /y requirements.lock .venv\requirements.lock >nul || goto failed
:start
%PYTHON% -m qwenproxy %*
set "CODE=%ERRORLEVEL%"
:failed
rem Double-clicked, the window would close with the message: wait for a key.
set "LINE=%CMDCMDLINE:"=%"
if not "%CODE%"=="0" if "%~1"=="" if not "%LINE:start.bat=%"=="%LINE%" pause
exit /b %CODE%
