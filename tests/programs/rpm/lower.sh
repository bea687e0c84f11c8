# A root without a shell, so what packages run is Lua, and packages in two versions: `watcher` is
# told of files of others. It is installed already, as an image has it.
mkdir -p rpms root/etc root/var/lib/rpm root/usr/share/things root/tmp
echo games:x:60: >root/etc/group
package() {
  cat >package.spec
  rpmbuild --quiet -bb --define '_topdir /mnt/top' --define '_rpmdir /mnt/rpms' --define '_build_id_links none' \
    --define '_rpmfilename %%{NAME}-%%{VERSION}.rpm' --define '_buildhost host' \
    --define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' package.spec
}
package <<'SPEC'
Name: watcher
Version: 1
Release: 1
Summary: made
License: none
BuildArch: noarch
%description
made
%transfiletriggerin -p <lua> -- /usr/share/things
file = rpm.next_file()
while file do print("watcher: in", file); file = rpm.next_file() end
%transfiletriggerpostun -p <lua> -- /usr/share/things
print("watcher: out")
%files
SPEC
for version in 1 2; do
  package <<SPEC
Name: thing
Version: $version
Release: 1
Summary: made
License: none
BuildArch: noarch
%description
made
%install
mkdir -p %{buildroot}/etc %{buildroot}/usr/share/things %{buildroot}/usr/lib/thing/deep
echo "thing $version" >%{buildroot}/etc/thing.conf
echo "$version" >%{buildroot}/usr/share/things/thing
ln %{buildroot}/usr/share/things/thing %{buildroot}/usr/share/things/same
for n in \$(seq 100); do echo "$version \$n" >%{buildroot}/usr/lib/thing/deep/\$n; done
ln -s deep/3 %{buildroot}/usr/lib/thing/link
[ $version = 2 ] || echo gone >%{buildroot}/usr/share/things/gone
%post -p <lua>
print("thing $version: post", arg[2])
file = io.open("/etc/thing.made", "w"); file:write("by $version\n"); file:close()
%postun -p <lua>
print("thing $version: postun", arg[2])
%files
%config(noreplace) /etc/thing.conf
%attr(4755, root, root) /usr/share/things/*
%attr(2770, root, games) %dir /usr/lib/thing
/usr/lib/thing/*
SPEC
done
rm -r top package.spec
rpm --root /mnt/root --dbpath /var/lib/rpm -i rpms/watcher-1.rpm
